//! A layer of long short-term memory (Hochreiter and Schmidhuber, Neural Computation 9(8), 1997), forward only.

use crate::linear::{Matrix, Panels, Start};
use crate::panel_linear::PanelLinear;
use crate::simd::{Isa, fused, sigmoid, simd_fn};

/// One layer. Gates in PyTorch's order: input, forget, cell, output.
#[derive(Clone, Debug)]
pub struct Lstm {
    width: usize,
    inputs: usize,
    from_input: Panels,
    from_state: PanelLinear,
    /// Both biases together, `[4 width]`.
    bias: Vec<f32>,
}

/// What a layer remembers of what it has heard.
#[derive(Clone, Debug, PartialEq)]
pub struct LstmState {
    /// `[width]`
    pub hidden: Vec<f32>,
    /// `[width]`
    pub cell: Vec<f32>,
}

impl LstmState {
    /// Before anything was heard.
    pub fn new(width: usize) -> Self {
        Self { hidden: vec![0.0; width], cell: vec![0.0; width] }
    }
}

impl Lstm {
    /// From weights as PyTorch stores them: `weight_ih` `[4 width, inputs]`, `weight_hh` `[4 width, width]` and the two
    /// biases `[4 width]`.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn new(inputs: usize, weight_ih: &[f32], weight_hh: &[f32], bias_ih: &[f32], bias_hh: &[f32]) -> Self {
        let width = bias_ih.len() / 4;
        assert!(width > 0 && bias_ih.len() == 4 * width && bias_hh.len() == 4 * width, "lstm biases");
        assert_eq!(weight_ih.len(), 4 * width * inputs, "lstm weight_ih");
        assert_eq!(weight_hh.len(), 4 * width * width, "lstm weight_hh");
        Self {
            width,
            inputs,
            from_input: Panels::new(Matrix::new(weight_ih, 4 * width, inputs).turned()),
            from_state: PanelLinear::from_f32(weight_hh, width),
            bias: bias_ih.iter().zip(bias_hh).map(|(a, b)| a + b).collect(),
        }
    }

    /// Width of state and output.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `[frames, inputs]` to `[frames, width]`; the state goes on.
    ///
    /// # Panics
    /// If `x` is not whole frames or the state is another layer's.
    pub fn forward(&self, x: &[f32], state: &mut LstmState) -> Vec<f32> {
        assert!(x.len().is_multiple_of(self.inputs), "lstm: {} values of {}", x.len(), self.inputs);
        assert_eq!((state.hidden.len(), state.cell.len()), (self.width, self.width), "lstm state");
        let frames = x.len() / self.inputs;
        let mut gates = vec![0.0; frames * 4 * self.width];
        self.from_input.multiply(Matrix::new(x, frames, self.inputs), &mut gates, Start::Row(&self.bias));
        let mut out = Vec::with_capacity(frames * self.width);
        for gates in gates.chunks_exact_mut(4 * self.width) {
            self.from_state.add(&state.hidden, gates);
            advance(gates, &mut state.hidden, &mut state.cell);
            out.extend_from_slice(&state.hidden);
        }
        out
    }
}

simd_fn! {
    /// One frame from its gates before their nonlinearities.
    fn advance(gates: &[f32], hidden: &mut [f32], cell: &mut [f32]) = advance_body
}

#[inline(always)]
fn advance_body<I: Isa>(gates: &[f32], hidden: &mut [f32], cell: &mut [f32]) {
    let width = hidden.len();
    let cell = &mut cell[..width];
    let [input, forget, new, output] = std::array::from_fn(|gate| &gates[gate * width..][..width]);
    for c in 0..width {
        let kept = sigmoid::<I>(forget[c]) * cell[c];
        cell[c] = fused::<I>(sigmoid::<I>(input[c]), tanh::<I>(new[c]), kept);
        hidden[c] = sigmoid::<I>(output[c]) * tanh::<I>(cell[c]);
    }
}

#[inline(always)]
fn tanh<I: Isa>(x: f32) -> f32 {
    2.0 * sigmoid::<I>(2.0 * x) - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition in f64.
    fn plain(x: &[f64], inputs: usize, weights: [&[f64]; 4], state: &mut [Vec<f64>; 2]) -> Vec<f64> {
        let [ih, hh, bias_ih, bias_hh] = weights;
        let width = state[0].len();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mut out = Vec::new();
        for x in x.chunks_exact(inputs) {
            let gate = |row: usize| {
                let dot =
                    |weights: &[f64], values: &[f64]| -> f64 { weights.iter().zip(values).map(|(a, b)| a * b).sum() };
                dot(&ih[row * inputs..][..inputs], x)
                    + dot(&hh[row * width..][..width], &state[0])
                    + bias_ih[row]
                    + bias_hh[row]
            };
            let gates: Vec<f64> = (0..4 * width).map(gate).collect();
            for c in 0..width {
                state[1][c] = sigmoid(gates[width + c]) * state[1][c] + sigmoid(gates[c]) * gates[2 * width + c].tanh();
                state[0][c] = sigmoid(gates[3 * width + c]) * state[1][c].tanh();
            }
            out.extend_from_slice(&state[0]);
        }
        out
    }

    #[test]
    fn a_layer_equals_its_definition_and_may_be_cut_anywhere() {
        let (inputs, width, frames) = (10, 37, 25);
        let values =
            |count: usize, rate: f64| -> Vec<f32> { (0..count).map(|i| (i as f64 * rate).sin() as f32).collect() };
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|value| f64::from(*value)).collect() };
        let weights = [4 * width * inputs, 4 * width * width, 4 * width, 4 * width].map(|count| values(count, 0.7));
        let x = values(frames * inputs, 1.3);
        let lstm = Lstm::new(inputs, &weights[0], &weights[1], &weights[2], &weights[3]);
        let mut state = LstmState::new(width);
        let whole = lstm.forward(&x, &mut state);
        let mut expected_state = [vec![0.0; width], vec![0.0; width]];
        let wide_weights = [0, 1, 2, 3].map(|i| wide(&weights[i]));
        let expected = plain(&wide(&x), inputs, [0, 1, 2, 3].map(|i| wide_weights[i].as_slice()), &mut expected_state);
        for (got, expected) in whole.iter().zip(&expected).chain(state.cell.iter().zip(&expected_state[1])) {
            assert!((f64::from(*got) - expected).abs() < 1e-4, "{got} against {expected}");
        }
        let mut again = LstmState::new(width);
        let mut parts = lstm.forward(&x[..7 * inputs], &mut again);
        parts.extend(lstm.forward(&x[7 * inputs..], &mut again));
        assert_eq!((parts, again), (whole, state));
    }
}
