//! Sinusoidal positions as SSM-TTM and MusicGen have them: cosines first, and half - 1 steps of frequency.

/// Writes the vector of `position`: `[cos(p / 10000^(i / (half - 1))) .., sin(..) ..]`.
pub(crate) fn sinusoid(position: u64, target: &mut [f32]) {
    let half = target.len() / 2;
    let (cosines, sines) = target.split_at_mut(half);
    for (i, (cosine, sine)) in cosines.iter_mut().zip(sines).enumerate() {
        let exponent = if half > 1 { i as f64 / (half - 1) as f64 } else { 0.0 };
        let (s, c) = (position as f64 / 10_000f64.powf(exponent)).sin_cos();
        (*cosine, *sine) = (c as f32, s as f32);
    }
}
