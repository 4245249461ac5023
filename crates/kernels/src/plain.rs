//! Element functions and the causal convolution as defined, generic over f32 and f64: what the oracles of
//! both scans share.

use crate::causal_conv::{HISTORY, TAPS};
use crate::sequences::Sequences;
use num_traits::Float;

pub(crate) fn number<F: Float>(value: f64) -> F {
    F::from(value).expect("f32 and f64 hold any constant used here")
}

pub(crate) fn sigmoid<F: Float>(x: F) -> F {
    F::one() / (F::one() + (-x).exp())
}

pub(crate) fn silu<F: Float>(x: F) -> F {
    x * sigmoid(x)
}

pub(crate) fn silu_slope<F: Float>(x: F) -> F {
    let gate = sigmoid(x);
    gate * (F::one() + x * (F::one() - gate))
}

pub(crate) fn softplus<F: Float>(x: F) -> F {
    if x > number(20.0) { x } else { x.exp().ln_1p() }
}

pub(crate) fn softplus_slope<F: Float>(x: F) -> F {
    if x > number(20.0) { F::one() } else { sigmoid(x) }
}

/// The causal convolution over some columns of the rows of all frames, before SiLU.
pub(crate) struct Convolution<'a, F> {
    pub(crate) sequences: Sequences<'a>,
    /// `[batch, frames, row_width]`
    pub(crate) values: &'a [F],
    pub(crate) row_width: usize,
    /// Column of the first channel.
    pub(crate) column: usize,
    /// `[channels, 4]`
    pub(crate) weight: &'a [F],
    /// `[channels]`
    pub(crate) bias: &'a [F],
    /// Inputs before the first frame `[batch, channels, 3]`, oldest first; zeros where absent.
    pub(crate) history: Option<&'a [F]>,
}

/// Gradients of a convolution's weights and history, each shaped as these.
pub(crate) struct ConvolutionGradients<F> {
    pub(crate) weight: Vec<F>,
    pub(crate) bias: Vec<F>,
    pub(crate) history: Vec<F>,
}

/// What a tap reads.
enum Read {
    /// A place in the rows.
    Value(usize),
    /// A place in the history.
    History(usize),
    /// Padding.
    Zero,
}

impl<F: Float> Convolution<'_, F> {
    fn channels(&self) -> usize {
        self.bias.len()
    }

    fn read(&self, sequence: usize, frame: usize, tap: usize, channel: usize) -> Read {
        let at = frame + tap;
        if at < HISTORY {
            Read::History((sequence * self.channels() + channel) * HISTORY + at)
        } else if at - HISTORY < self.sequences.padding_of(sequence) {
            Read::Zero
        } else {
            let row = sequence * self.sequences.frames + at - HISTORY;
            Read::Value(row * self.row_width + self.column + channel)
        }
    }

    fn input(&self, sequence: usize, frame: usize, tap: usize, channel: usize) -> F {
        match self.read(sequence, frame, tap, channel) {
            Read::Value(at) => self.values[at],
            Read::History(at) => self.history.map_or(F::zero(), |history| history[at]),
            Read::Zero => F::zero(),
        }
    }

    /// `[channels]` of one frame.
    pub(crate) fn frame(&self, sequence: usize, frame: usize) -> Vec<F> {
        let sum = |channel: usize| {
            (0..TAPS).fold(self.bias[channel], |sum, tap| {
                sum + self.weight[channel * TAPS + tap] * self.input(sequence, frame, tap, channel)
            })
        };
        (0..self.channels()).map(sum).collect()
    }

    /// The last three inputs `[batch, channels, 3]`.
    pub(crate) fn final_history(&self) -> Vec<F> {
        let channels = self.channels();
        let place =
            |i: usize| self.input(i / HISTORY / channels, self.sequences.frames, i % HISTORY, i / HISTORY % channels);
        (0..self.sequences.batch * channels * HISTORY).map(place).collect()
    }

    /// Adds the inputs' gradients to `d_values`, from those of the sums `[batch, frames, channels]` and of the final
    /// history.
    pub(crate) fn backward(&self, d_sums: &[F], d_final: Option<&[F]>, d_values: &mut [F]) -> ConvolutionGradients<F> {
        let (channels, frames) = (self.channels(), self.sequences.frames);
        let mut out = ConvolutionGradients {
            weight: vec![F::zero(); channels * TAPS],
            bias: vec![F::zero(); channels],
            history: vec![F::zero(); self.sequences.batch * channels * HISTORY],
        };
        let mut add = |history: &mut [F], read: Read, gradient: F| match read {
            Read::Value(at) => d_values[at] = d_values[at] + gradient,
            Read::History(at) => history[at] = history[at] + gradient,
            Read::Zero => {}
        };
        for (i, &d_sum) in d_sums.iter().enumerate() {
            let (sequence, frame, channel) = (i / channels / frames, i / channels % frames, i % channels);
            out.bias[channel] = out.bias[channel] + d_sum;
            for tap in 0..TAPS {
                let at = channel * TAPS + tap;
                out.weight[at] = out.weight[at] + d_sum * self.input(sequence, frame, tap, channel);
                add(&mut out.history, self.read(sequence, frame, tap, channel), d_sum * self.weight[at]);
            }
        }
        for (i, &gradient) in d_final.unwrap_or(&[]).iter().enumerate() {
            let (sequence, channel) = (i / HISTORY / channels, i / HISTORY % channels);
            add(&mut out.history, self.read(sequence, frames, i % HISTORY, channel), gradient);
        }
        out
    }
}
