//! Convolution by its definition, generic over f32 and f64: the oracle of the fast one.

use super::ConvSizes;
use num_traits::Float;

/// `[frames, inputs]` to `[sizes.frames(frames), outputs]`; weight `[outputs, inputs / groups, taps]`, bias `[outputs]`.
pub fn forward<F: Float>(sizes: &ConvSizes, x: &[F], weight: &[F], bias: &[F]) -> Vec<F> {
    let frames = sizes.frames(x.len() / sizes.inputs);
    let (inputs, outputs) = (sizes.inputs / sizes.groups, sizes.outputs / sizes.groups);
    let mut out = Vec::with_capacity(frames * sizes.outputs);
    for frame in 0..frames {
        for output in 0..sizes.outputs {
            let first = output / outputs * inputs;
            let mut sum = bias[output];
            for input in 0..inputs {
                for tap in 0..sizes.taps {
                    let at = frame * sizes.stride + tap * sizes.dilation;
                    let factor = weight[(output * inputs + input) * sizes.taps + tap];
                    sum = sum + factor * x[at * sizes.inputs + first + input];
                }
            }
            out.push(sum);
        }
    }
    out
}

/// The transpose of a convolution of stride `stride`: `[frames, inputs]` to `[(frames - 1) * stride + taps, outputs]`;
/// weight `[inputs, outputs, taps]`.
pub fn transposed<F: Float>(inputs: usize, taps: usize, stride: usize, x: &[F], weight: &[F], bias: &[F]) -> Vec<F> {
    let (frames, outputs) = (x.len() / inputs, bias.len());
    if frames == 0 {
        return Vec::new();
    }
    let mut out: Vec<F> = (0..(frames - 1) * stride + taps).flat_map(|_| bias.iter().copied()).collect();
    for frame in 0..frames {
        for input in 0..inputs {
            let value = x[frame * inputs + input];
            for output in 0..outputs {
                for tap in 0..taps {
                    let sum = &mut out[(frame * stride + tap) * outputs + output];
                    *sum = *sum + value * weight[(input * outputs + output) * taps + tap];
                }
            }
        }
    }
    out
}
