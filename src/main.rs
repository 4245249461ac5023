//! The `mambo` binary: flags become a typed config, one library call, printed results.

mod cli;

use std::process::ExitCode;

use clap::Parser;

// The training and decoding loops allocate many short-lived buffers of the same sizes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // clap prints usage errors itself and leaves with code 2.
    let arguments = cli::Arguments::parse();
    cli::start_logging(arguments.verbose, arguments.quiet);
    if let Err(reason) = mambo_kernels::simd::limit() {
        return cli::report(&anyhow::anyhow!(reason));
    }
    // A step of training or of the second stage asks for the same large blocks as the one before.
    mambo_kernels::memory::keep_freed_memory();
    match arguments.command.run() {
        Ok(code) => code,
        Err(error) => cli::report(&error),
    }
}
