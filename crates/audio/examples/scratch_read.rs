use mambo_audio::*;
use std::time::Instant;
fn rss() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .find(|l| l.starts_with("VmHWM"))
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}
fn cpu() -> f64 {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|t| {
            std::fs::read_to_string(t.unwrap().path().join("schedstat"))
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .parse::<f64>()
                .unwrap()
                * 1e-9
        })
        .sum()
}
fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let quiet = args[0] == "-q";
    if quiet {
        args.remove(0);
    }
    let (mut ok, mut bad) = (0, 0);
    let mut total = 0.0;
    let c0 = cpu();
    for a in args {
        let p = std::path::Path::new(&a);
        let t = Instant::now();
        let c = cpu();
        let r = (|| -> Result<(f64, String, u32, usize), AudioError> {
            let mut r = AudioReader::open(p)?;
            let mut rs = Resampler::new(r.sample_rate(), if r.sample_rate() == 44100 { 48000 } else { 44100 }, 1);
            let mut n = 0;
            while let Some(b) = r.next_block()? {
                n += b.frames();
                let o = rs.push(&AudioClip::from_mono(b.to_mono(), b.sample_rate));
                std::hint::black_box(o);
            }
            Ok((n as f64 / r.sample_rate() as f64, r.format_name().to_string(), r.sample_rate(), n))
        })();
        match r {
            Ok((s, f, rate, n)) => {
                ok += 1;
                total += s;
                if !quiet {
                    println!(
                        "{f} {rate} {n} frames {s:.2} s {:.0}x cpu {:.0}x hwm {} kB {a}",
                        s / t.elapsed().as_secs_f64(),
                        s / (cpu() - c),
                        rss()
                    );
                }
            }
            Err(e) => {
                bad += 1;
                println!("ERR {}: {e}", e.kind());
            }
        }
    }
    println!("ok {ok} bad {bad} total {total:.0} s, {:.0}x cpu, hwm {} kB", total / (cpu() - c0), rss());
}

// SYM
