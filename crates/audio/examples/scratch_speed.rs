use mambo_audio::spectrum::*;
fn cpu() -> f64 { std::fs::read_dir("/proc/self/task").unwrap().map(|t| std::fs::read_to_string(t.unwrap().path().join("schedstat")).unwrap().split(' ').next().unwrap().parse::<f64>().unwrap()*1e-6).sum() }
fn main() {
    let raw = std::fs::read(std::env::args().nth(1).unwrap()).unwrap();
    let x: Vec<f32> = raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0],b[1],b[2],b[3]])).collect();
    let stft = Stft::new(2048, 512);
    for _ in 0..3 { let t = cpu(); let m = stft.magnitude(&x); println!("cpu ms: mag {:.1}", cpu()-t);
    let t = cpu(); let m2 = stft.forward(&x); println!("fwd {:.1}", cpu()-t);
    let t = cpu(); let _ = stft.inverse(&m2, x.len()); println!("inv {:.1}", cpu()-t);
    for it in [0, 1,2, 16] { let g = GriffinLim::new(2048,512,it,0.99); let t = cpu(); let y = g.invert(&m, 1); println!("gl{it} {:.1} {}", cpu()-t, y.len()); } }
}
