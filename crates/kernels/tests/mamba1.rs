//! The Mamba mixer against golden files of tools/reference/mamba1.py (float64 recurrence, PyTorch's gradients), and
//! its laws: fused equals the recurrence (values, states, gradients), the chunk length is immaterial, sequences may be
//! cut anywhere, forward equals a fold of steps, the number of threads cannot change a byte.

#![allow(clippy::unwrap_used)]

#[path = "common/golden_file.rs"]
mod golden_file;
#[path = "common/instruction_sets.rs"]
mod instruction_sets;
#[path = "common/numbers.rs"]
mod numbers;

use golden_file::Golden;
use mambo_kernels::bf16_product::MatrixPrecision;
use mambo_kernels::mamba1::{self, Gradients, Mamba1Config, Projections, Sequences, States, Weights, plain};
use numbers::{distance, uniform, wide};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

const PRECISION: MatrixPrecision = MatrixPrecision::F32;

/// All inputs, in the order of the golden files' names.
const NAMES: [&str; 10] = [
    "projected",
    "conv_weight",
    "conv_bias",
    "x_projection",
    "dt_projection",
    "dt_bias",
    "a_log",
    "d_skip",
    "conv_state",
    "ssm_state",
];
/// Results, and upstream gradients of each.
const RESULTS: [&str; 3] = ["output", "final_conv_state", "final_ssm_state"];

/// One batch with everything that a forward and a backward pass read.
struct Case<F> {
    config: Mamba1Config,
    batch: usize,
    frames: usize,
    padding: Vec<usize>,
    inputs: [Vec<F>; 10],
    upstream: [Vec<F>; 3],
}

impl<F> Case<F> {
    fn weights(&self) -> Weights<'_, F> {
        let [_, conv_weight, conv_bias, _, _, dt_bias, a_log, d_skip, _, _] = &self.inputs;
        Weights { conv_weight, conv_bias, dt_bias, a_log, d_skip }
    }

    fn projections(&self) -> Projections<'_, F> {
        Projections { x: &self.inputs[3], dt: &self.inputs[4] }
    }

    fn sequences(&self) -> Sequences<'_> {
        Sequences { batch: self.batch, frames: self.frames, padding: &self.padding }
    }

    fn initial(&self) -> States<'_, F> {
        States { conv: &self.inputs[8], ssm: &self.inputs[9] }
    }

    fn d_final(&self) -> States<'_, F> {
        States { conv: &self.upstream[1], ssm: &self.upstream[2] }
    }
}

impl Case<f32> {
    fn new(config: Mamba1Config, batch: usize, frames: usize, seed: u64) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let Mamba1Config { inner, state, rank, .. } = config;
        let (conv, ssm) = (batch * config.conv_state_size(), batch * config.ssm_state_size());
        let inputs = [
            (batch * frames * 2 * inner, -2.0, 2.0),
            (inner * 4, -0.5, 0.5),
            (inner, -0.5, 0.5),
            ((rank + 2 * state) * inner, -1.0, 1.0),
            (inner * rank, -0.5, 0.5),
            (inner, -5.0, -1.0),
            (inner * state, 0.0, 2.7),
            (inner, 0.5, 1.5),
            (conv, -2.0, 2.0),
            (ssm, -1.0, 1.0),
        ]
        .map(|(count, low, high)| uniform(rng, count, low, high));
        let upstream =
            [(batch * frames * inner, 1.0), (conv, 1.0), (ssm, 0.1)].map(|(count, s)| uniform(rng, count, -s, s));
        Self { config, batch, frames, padding: Vec::new(), inputs, upstream }
    }

    fn in_f64(&self) -> Case<f64> {
        Case {
            config: self.config,
            batch: self.batch,
            frames: self.frames,
            padding: self.padding.clone(),
            inputs: self.inputs.each_ref().map(|values| wide(values)),
            upstream: self.upstream.each_ref().map(|values| wide(values)),
        }
    }

    fn forward(&self) -> mamba1::Forward {
        let (weights, projections) = (self.weights(), self.projections());
        let (config, initial) = (&self.config, Some(self.initial()));
        mamba1::forward(
            config,
            self.sequences(),
            &self.inputs[0],
            &weights,
            &projections,
            PRECISION,
            initial,
            true,
            true,
        )
    }

    fn backward(&self, saved: Option<&mamba1::Forward>) -> Gradients {
        mamba1::backward(
            &self.config,
            self.sequences(),
            &self.inputs[0],
            &self.weights(),
            &self.projections(),
            PRECISION,
            Some(self.initial()),
            saved.map(|forward| forward.saved.as_ref().unwrap().view()),
            &self.upstream[0],
            Some(self.d_final()),
        )
    }

    /// Frames `from..to` of a case with one sequence, from `states` and with gradients `d_final` of the states after.
    fn part(&self, from: usize, to: usize, states: [&[f32]; 2], d_final: [&[f32]; 2]) -> Self {
        let inner = self.config.inner;
        let mut inputs = self.inputs.clone();
        inputs[0] = self.inputs[0][from * 2 * inner..to * 2 * inner].to_vec();
        [inputs[8], inputs[9]] = states.map(<[f32]>::to_vec);
        let [conv, ssm] = d_final.map(<[f32]>::to_vec);
        let upstream = [self.upstream[0][from * inner..to * inner].to_vec(), conv, ssm];
        Self { config: self.config, batch: 1, frames: to - from, padding: Vec::new(), inputs, upstream }
    }

    /// Compares the fused path with the recurrence in f64, each result by itself.
    fn check(&self, limit: f64) {
        let exact = self.in_f64().run();
        let forward = self.forward();
        let got = gradients(self.backward(Some(&forward)));
        for (name, got) in NAMES.iter().zip(&got) {
            self.compare(&format!("d_{name}"), got, &exact, limit);
        }
        for (name, got) in RESULTS.iter().zip([&forward.output, &forward.conv_state, &forward.ssm_state]) {
            self.compare(name, got, &exact, limit);
        }
    }

    fn compare(&self, name: &str, got: &[f32], exact: &[(String, Vec<f64>)], limit: f64) {
        let (_, expected) = exact.iter().find(|(other, _)| other == name).unwrap();
        let off = distance(got, expected);
        let Self { config, batch, frames, .. } = self;
        assert!(off <= limit, "{name}: {off:.2e} above {limit:.0e} for {config:?}, batch {batch}, frames {frames}");
    }
}

impl Case<f64> {
    /// Results and gradients of the recurrence, by name.
    fn run(&self) -> Vec<(String, Vec<f64>)> {
        let Self { config, inputs, upstream, .. } = self;
        let (weights, projections) = (self.weights(), self.projections());
        let trace = plain::forward(config, self.sequences(), &inputs[0], &weights, &projections, Some(self.initial()));
        let d = plain::backward(
            config,
            self.sequences(),
            &inputs[0],
            &weights,
            &projections,
            Some(self.initial()),
            &trace,
            &upstream[0],
            Some(self.d_final()),
        );
        let results = RESULTS.map(String::from).into_iter().zip([trace.output, trace.conv_state, trace.ssm_state]);
        let gradients = [
            d.projected,
            d.conv_weight,
            d.conv_bias,
            d.x_projection,
            d.dt_projection,
            d.dt_bias,
            d.a_log,
            d.d_skip,
            d.conv_state,
            d.ssm_state,
        ];
        results.chain(NAMES.map(|name| format!("d_{name}")).into_iter().zip(gradients)).collect()
    }
}

/// In the order of [`NAMES`].
fn gradients(d: Gradients) -> [Vec<f32>; 10] {
    let start = d.initial.expect("there were initial states");
    [
        d.projected,
        d.conv_weight,
        d.conv_bias,
        d.x_projection,
        d.dt_projection,
        d.dt_bias,
        d.a_log,
        d.d_skip,
        start.conv,
        start.ssm,
    ]
}

fn check_file(frames: usize) {
    let bytes = golden_file::read(&format!("mamba1_{frames}"));
    let golden = Golden::open(&bytes);
    let [batch, frames, inner, state, rank, chunk] = golden.sizes()[..] else { panic!("six sizes") };
    let case = Case {
        config: Mamba1Config { inner, state, rank, chunk },
        batch,
        frames,
        padding: Vec::new(),
        inputs: NAMES.map(|name| golden.narrow(name)),
        upstream: RESULTS.map(|name| golden.narrow(&format!("upstream_{name}"))),
    };
    for (name, values) in case.in_f64().run() {
        golden.check(&name, &values, 1e-9);
    }
    let forward = case.forward();
    for (name, got) in RESULTS.iter().zip([&forward.output, &forward.conv_state, &forward.ssm_state]) {
        golden.check(name, got, 1e-4);
    }
    for (name, got) in NAMES.iter().zip(gradients(case.backward(Some(&forward)))) {
        golden.check(&format!("d_{name}"), &got, 1e-4);
    }
}

#[test]
fn golden_of_one_frame() {
    check_file(1);
}

#[test]
fn golden_of_seven_frames_in_two_blocks_of_channels() {
    check_file(7);
}

#[test]
fn golden_of_three_hundred_frames() {
    check_file(300);
}

fn config(inner: usize, state: usize, rank: usize, chunk: usize) -> Mamba1Config {
    Mamba1Config { inner, state, rank, chunk }
}

#[test]
fn fused_equals_the_recurrence_at_working_sizes() {
    for (frames, batch, config) in [
        (1, 2, config(64, 16, 2, 64)),
        (300, 2, config(96, 16, 3, 64)),
        (130, 3, config(70, 5, 5, 32)),
        (40, 1, config(34, 100, 3, 16)),
        (2588, 1, config(12, 8, 2, 128)),
    ] {
        Case::new(config, batch, frames, frames as u64).check(2e-5);
    }
}

#[test]
fn padding_leaves_states_and_real_frames_as_without_it() {
    let config = config(40, 6, 3, 16);
    for padding in [0, 1, 5, 16, 20, 40] {
        let mut case = Case::new(config, 2, 40, padding as u64);
        case.inputs[8].fill(0.0);
        case.padding = vec![padding, 7];
        case.check(2e-5);
        let padded = case.forward();
        let (conv, ssm) = (config.conv_state_size(), config.ssm_state_size());
        let states = [&case.inputs[8][..conv], &case.inputs[9][..ssm]];
        let bare = case.part(padding, 40, states, states).forward();
        assert!(distance(&padded.output[padding * config.inner..40 * config.inner], &wide(&bare.output)) < 1e-6);
        assert!(distance(&padded.ssm_state[..ssm], &wide(&bare.ssm_state)) < 1e-6);
        assert_eq!(padded.conv_state[..conv], bare.conv_state);
    }
}

#[test]
fn every_instruction_set_obeys_these_laws() {
    instruction_sets::repeat_without("every_instruction_set_obeys_these_laws", mambo_kernels::simd::LIMIT);
}

#[test]
fn saved_values_only_save_time() {
    let case = Case::new(config(64, 16, 4, 32), 2, 75, 11);
    let forward = case.forward();
    assert_eq!(gradients(case.backward(Some(&forward))), gradients(case.backward(None)));
}

#[test]
fn thread_count_cannot_change_a_byte() {
    let case = Case::new(config(200, 16, 8, 32), 3, 90, 12);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let forward = case.forward();
            let gradients = gradients(case.backward(Some(&forward)));
            (forward.output, forward.conv_state, forward.ssm_state, gradients)
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_size_equals_the_recurrence(
        frames in 1usize..70, batch in 1usize..3, inner in 4usize..80, state in 1usize..20, rank in 1usize..5,
        chunk in 1usize..40, seed in any::<u64>(),
    ) {
        Case::new(config(inner, state, rank, chunk), batch, frames, seed).check(1e-4);
    }

    #[test]
    fn chunk_length_never_changes_the_result(frames in 1usize..90, chunk in 1usize..100, seed in any::<u64>()) {
        let case = Case::new(config(48, 8, 2, 16), 2, frames, seed);
        let other = Case { config: Mamba1Config { chunk, ..case.config }, ..Case::new(case.config, 2, frames, seed) };
        let (a, b) = (case.forward(), other.forward());
        // Forward no value is summed in another order.
        prop_assert_eq!(&a.output, &b.output);
        prop_assert_eq!(&a.ssm_state, &b.ssm_state);
        prop_assert_eq!(&a.conv_state, &b.conv_state);
        let (a, b) = (gradients(case.backward(Some(&a))), gradients(other.backward(Some(&b))));
        for (a, b) in a.iter().zip(&b) {
            prop_assert!(distance(a, &wide(b)) < 1e-5);
        }
    }

    #[test]
    fn a_sequence_may_be_cut_anywhere(first in 1usize..40, second in 1usize..40, seed in any::<u64>()) {
        let case = Case::new(config(40, 12, 3, 16), 1, first + second, seed);
        let whole = case.forward();
        let expected = gradients(case.backward(Some(&whole)));
        let start = [&case.inputs[8], &case.inputs[9]].map(Vec::as_slice);
        let end = [&case.upstream[1], &case.upstream[2]].map(Vec::as_slice);
        let head = case.part(0, first, start, end).forward();
        let tail_case = case.part(first, first + second, [&head.conv_state, &head.ssm_state], end);
        let tail = tail_case.forward();
        let joined = [head.output.as_slice(), tail.output.as_slice()].concat();
        prop_assert!(distance(&joined, &wide(&whole.output)) < 1e-6);
        prop_assert!(distance(&tail.ssm_state, &wide(&whole.ssm_state)) < 1e-6);
        prop_assert_eq!(&tail.conv_state, &whole.conv_state);

        // Gradients through the cut: the second half's initial gradients are the first half's final ones.
        let second_half = gradients(tail_case.backward(None));
        let head_case = case.part(0, first, start, [&second_half[8], &second_half[9]]);
        let first_half = gradients(head_case.backward(None));
        for (i, name) in NAMES.iter().enumerate() {
            let joined = match i {
                0 => [first_half[0].as_slice(), second_half[0].as_slice()].concat(),
                8 | 9 => first_half[i].clone(),
                _ => first_half[i].iter().zip(&second_half[i]).map(|(a, b)| a + b).collect(),
            };
            let off = distance(&joined, &wide(&expected[i]));
            prop_assert!(off < 3e-5, "{}: {}", name, off);
        }
    }

    #[test]
    fn forward_equals_a_fold_of_steps(frames in 1usize..50, seed in any::<u64>()) {
        let config = config(40, 12, 3, 16);
        let Mamba1Config { inner, rank, .. } = config;
        let case = Case::new(config, 2, frames, seed);
        let whole = case.forward();
        let [projected, .., conv, ssm] = &case.inputs;
        let (mut conv, mut ssm) = (conv.clone(), ssm.clone());
        let add_product = |matrix: &[f32], width: usize, x: &[f32], out: &mut [f32]| {
            for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(matrix.len() / width)) {
                for (row, out) in matrix.chunks_exact(width).zip(out) {
                    *out += row.iter().zip(x).map(|(a, b)| a * b).sum::<f32>();
                }
            }
        };
        let mut output = vec![0.0; whole.output.len()];
        for frame in 0..frames {
            let row = |sequence: usize| projected[(sequence * frames + frame) * 2 * inner..][..2 * inner].to_vec();
            let input = [row(0), row(1)].concat();
            let mut out = vec![0.0; 2 * inner];
            mamba1::step(
                &config,
                2,
                &input,
                &case.weights(),
                |x, out| add_product(&case.inputs[3], inner, x, out),
                |x, out| add_product(&case.inputs[4], rank, x, out),
                &mut conv,
                &mut ssm,
                &mut out,
            );
            for sequence in 0..2 {
                output[(sequence * frames + frame) * inner..][..inner]
                    .copy_from_slice(&out[sequence * inner..][..inner]);
            }
        }
        prop_assert!(distance(&output, &wide(&whole.output)) < 1e-5);
        prop_assert!(distance(&ssm, &wide(&whole.ssm_state)) < 1e-5);
        prop_assert_eq!(&conv, &whole.conv_state);
    }
}
