//! Hostile files for Mambo's readers: `mambo-fuzz TARGET [EXECUTIONS [SEED]]`, or `mambo-fuzz TARGET FILE` to read one again.
//! See README.md.

mod counters;
mod last_input;
mod memory;
mod search;
mod targets;

#[path = "../../crates/model/tests/checkpoints/mod.rs"]
mod checkpoints;
#[path = "../../crates/model/tests/hostile/mod.rs"]
mod hostile;
#[path = "../../crates/data/tests/shards/mod.rs"]
mod shards;

use std::path::Path;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: memory::Counted = memory::Counted;

/// The bar: executions of each reader without a crash.
const EXECUTIONS: u64 = 10_000_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("", String::as_str);
    let Some(target) = targets::TARGETS.iter().find(|target| target.name == name) else {
        let names = targets::TARGETS.map(|target| target.name).join(", ");
        eprintln!("expected a reader, one of {names}; then executions and seed, or a file");
        return ExitCode::from(2);
    };
    // What a panic says of itself may take more memory than what panicked.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        memory::lift();
        hook(panic);
    }));
    search::watch();
    let number = |at: usize, default: u64| match arguments.get(at) {
        Some(text) => text.parse::<u64>().ok(),
        None => Some(default),
    };
    let well = match (number(1, EXECUTIONS), number(2, 1)) {
        (Some(executions), Some(seed)) => search::search(target, executions, seed, Path::new("found")),
        _ => again(target, Path::new(&arguments[1])),
    };
    for kind in ["shard", "pth"] {
        let _ = std::fs::remove_file(targets::scratch(kind));
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Reads one file; one that ends in `.last` is what a program left when it ended.
fn again(target: &targets::Target, path: &Path) -> bool {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return false;
        }
    };
    let is_last = path.extension().is_some_and(|extension| extension == "last");
    let file = if is_last { last_input::LastInput::restore(&bytes).unwrap_or(&[]) } else { &bytes };
    let cost = search::execute(target, file);
    println!("{} bytes: {cost:?}", file.len());
    cost.is_some()
}
