#!/usr/bin/env bash
# Hostile files for the readers: tools/soak/fuzz.sh [EXECUTIONS [READER...]], by default ten million for each of all four.
# SEED=2 draws other files. See fuzz/README.md.
set -euo pipefail
cd "$(dirname "$0")/../../fuzz"
# The versions that the workspace is tested with.
[ -f Cargo.lock ] || cp ../Cargo.lock .
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTC_WRAPPER=$PWD/instrument.sh cargo build --release --target "$host"
executions=${1:-10000000}
shift || true
[ $# -gt 0 ] || set -- safetensors checkpoint pickle shard
for reader; do
    "target/$host/release/mambo-fuzz" "$reader" "$executions" "${SEED:-1}"
done
