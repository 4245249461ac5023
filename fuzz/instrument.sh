#!/usr/bin/env bash
# Cargo's RUSTC_WRAPPER: compiles the readers, and what they parse with, so that each edge of their code counts how often
# it was taken. Only what is built for a named target: build scripts link without the counters' owner.
set -euo pipefail
case " $* " in
*" --target "*)
    for crate in mambo_fuzz mambo_model mambo_data safetensors serde_json; do
        case " $* " in
        *" --crate-name $crate "*)
            exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
                -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
            ;;
        esac
    done
    ;;
esac
exec "$@"
