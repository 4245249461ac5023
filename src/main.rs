//! The `mambo` binary: flags become a typed config, one library call, printed results.
fn main() {}
