use mambo_audio::spectrum::*;
use std::time::Instant;
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let raw = std::fs::read(path).unwrap();
    let x: Vec<f32> = raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0],b[1],b[2],b[3]])).collect();
    let stft = Stft::new(2048, 512);
    let t = Instant::now();
    let m = stft.magnitude(&x);
    println!("stft {:?} for {} s", t.elapsed(), x.len() as f64/44100.);
    let err = |y: &[f32]| { let n = stft.magnitude(y); let (mut e, mut p, mut le, mut c)=(0f64,0f64,0f64,0f64);
        for f in 8..m.frames-8 { for (a,b) in n.frame(f).iter().zip(m.frame(f)) { e+=((a-b)*(a-b)) as f64; p+=(b*b) as f64; le += ((a+1e-2).ln()-(b+1e-2).ln()).powi(2) as f64; c+=1.; } }
        (10.*(e/p).log10(), (le/c).sqrt()*8.686) };
    for it in [0,1,4,8,16,32,64] { for mom in [0.0f32, 0.5, 0.99, 1.3] {
        let g = GriffinLim::new(2048,512,it,mom);
        let t=Instant::now(); let y=g.invert(&m,1); let d=t.elapsed();
        println!("it {it} mom {mom} {:?} sc {:.2?}", d, err(&y));
        if mom == 0.99 && it==16 { for (block, la) in [(80,4),(80,8),(80,16),(32,8),(8,8),(8,4)] {
            let t=Instant::now(); let mut s=GriffinLimStream::new(&g,la,1); let mut y=vec![]; let mut at=0; while at<m.frames { let e=(at+block).min(m.frames); y.extend(s.push(&m.slice(at..e))); at=e; } y.extend(s.finish());
            println!("  stream block {block} la {la} {:?} len {} {:.2?}", t.elapsed(), y.len() as i64 - (m.frames*512) as i64, err(&y)); } }
    }}
}
