//! The search: change a file, have it read, keep it if the reader went where it had never gone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::counters::Counters;
use crate::hostile::Random;
use crate::last_input::LastInput;
use crate::memory;
use crate::targets::Target;

/// What one execution may hold: so many times the file, and a fixed amount.
const TIMES_FILE: usize = 64;
const FIXED: usize = 16 << 20;
/// Longest that an execution may take. One that takes longer gets a second try: other programs may have been at work.
const LONGEST: Duration = Duration::from_secs(1);
/// After so many seconds an execution counts as one that never ends.
const HANGS: u64 = 20;
/// Kept files above this length are changed more rarely, the longer the more so.
const LONG: usize = 2048;

/// Executions that have begun.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// What a file cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    pub time: Duration,
    pub memory: usize,
}

/// Reads one file under all limits. `None` if the reader panicked.
pub fn execute(target: &Target, file: &[u8]) -> Option<Cost> {
    BEGUN.fetch_add(1, Ordering::Relaxed);
    let before = memory::held();
    memory::limit(TIMES_FILE * file.len() + FIXED);
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.read)(file)));
    let cost = Cost { time: start.elapsed(), memory: memory::most(before) };
    outcome.ok().map(|()| cost)
}

/// Ends the program when an execution never ends.
pub fn watch() {
    std::thread::spawn(|| {
        loop {
            let begun = BEGUN.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_secs(HANGS));
            if begun == BEGUN.load(Ordering::Relaxed) {
                eprintln!("an execution has not ended after {HANGS} s");
                std::process::abort();
            }
        }
    });
}

/// Runs `executions` of the target; files that crash go to `found`. Returns whether all was well.
pub fn search(target: &Target, executions: u64, seed: u64, found: &Path) -> bool {
    let mut random = Random(seed);
    let mut counters = Counters::new();
    let mut last = LastInput::new(target.name, seed);
    let mut kept: Vec<Vec<u8>> = Vec::new();
    let (mut slowest, mut largest) = (Duration::ZERO, 0);
    let mut seeds = (target.seeds)().into_iter();
    let (start, mut told) = (Instant::now(), Instant::now());
    for n in 0..executions {
        let sound = seeds.next();
        let is_seed = sound.is_some();
        let file = sound.unwrap_or_else(|| changed(target, &kept, &mut random));
        last.store(&file);
        counters.clear();
        let cost = execute(target, &file);
        let new = counters.anything_new();
        let too_slow =
            |cost: &Cost| cost.time > LONGEST && execute(target, &file).is_some_and(|cost| cost.time > LONGEST);
        let Some(cost) = cost.filter(|cost| !too_slow(cost)) else {
            let path = found.join(format!("{}-{seed}-{n}", target.name));
            std::fs::create_dir_all(found).and_then(|()| std::fs::write(&path, &file)).expect("the file is kept");
            println!("{}: a crash, or more than {LONGEST:?}: {}", target.name, path.display());
            return false;
        };
        slowest = slowest.max(cost.time);
        largest = largest.max(cost.memory);
        if new || is_seed {
            kept.push(file);
        }
        if told.elapsed() > Duration::from_secs(10) || n + 1 == executions {
            told = Instant::now();
            let (edges, taken) = counters.edges();
            let rate = (n + 1) as f64 / start.elapsed().as_secs_f64();
            println!(
                "{} (seed {seed}): {} executions, {rate:.0}/s, {} files kept, {taken} of {edges} edges, slowest {slowest:.1?}, most memory {} KB",
                target.name,
                n + 1,
                kept.len(),
                largest >> 10,
            );
        }
    }
    last.remove();
    true
}

/// A change of one of the kept files, every other time of one of the latest.
fn changed(target: &Target, kept: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let latest = kept.len() - kept.len().div_ceil(8);
    let mut file = loop {
        let at = if random.one_in(2) { latest + random.below(kept.len() - latest) } else { random.below(kept.len()) };
        if random.below(kept[at].len()) < LONG {
            break kept[at].clone();
        }
    };
    let other = random.below(kept.len());
    random.changes(target.change, &mut file, &kept[other]);
    file
}
