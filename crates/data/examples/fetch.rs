#![allow(missing_docs, clippy::print_stderr)]
use mambo_data::fetch::debian::{DebianOptions, fetch_debian};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let options =
        DebianOptions { out: args[1].clone().into(), with_tier_b: args[2] == "ab", debs: args.get(3).map(Into::into) };
    let summary = fetch_debian(&options, &mut |p| eprintln!("{p:?}")).expect("fetch");
    eprintln!("{summary:#?}");
}
