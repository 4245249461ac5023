//! Laws of the Mamba-2 mixer: chunked equals the recurrence (values, states, gradients), the chunk length is
//! immaterial, sequences may be cut anywhere, forward equals a fold of steps.

#![allow(clippy::unwrap_used)]

#[path = "common/instruction_sets.rs"]
mod instruction_sets;
#[path = "common/numbers.rs"]
mod numbers;

use mambo_kernels::mamba2::{self, Gradients, Mamba2Config, Sequences, States, Weights, plain};
use numbers::{distance, distance_above, uniform, wide};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

struct Case {
    config: Mamba2Config,
    batch: usize,
    frames: usize,
    padding: Vec<usize>,
    projected: Vec<f32>,
    conv_weight: Vec<f32>,
    conv_bias: Vec<f32>,
    dt_bias: Vec<f32>,
    a_log: Vec<f32>,
    d_skip: Vec<f32>,
    norm: Vec<f32>,
    conv_state: Vec<f32>,
    ssm_state: Vec<f32>,
    d_output: Vec<f32>,
    d_conv_state: Vec<f32>,
    d_ssm_state: Vec<f32>,
}

impl Case {
    fn new(config: Mamba2Config, batch: usize, frames: usize, seed: u64) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let (conv, ssm) = (batch * config.conv_state_size(), batch * config.ssm_state_size());
        Self {
            config,
            batch,
            frames,
            padding: Vec::new(),
            projected: uniform(rng, batch * frames * config.projected(), -2.0, 2.0),
            conv_weight: uniform(rng, config.conv_channels() * 4, -0.5, 0.5),
            conv_bias: uniform(rng, config.conv_channels(), -0.5, 0.5),
            dt_bias: uniform(rng, config.heads, -5.0, -1.0),
            a_log: uniform(rng, config.heads, 0.0, 2.7),
            d_skip: uniform(rng, config.heads, 0.5, 1.5),
            norm: uniform(rng, config.inner, 0.5, 1.5),
            conv_state: uniform(rng, conv, -2.0, 2.0),
            ssm_state: uniform(rng, ssm, -1.0, 1.0),
            d_output: uniform(rng, batch * frames * config.inner, -1.0, 1.0),
            d_conv_state: uniform(rng, conv, -1.0, 1.0),
            d_ssm_state: uniform(rng, ssm, -0.1, 0.1),
        }
    }

    fn weights(&self) -> Weights<'_, f32> {
        Weights {
            conv_weight: &self.conv_weight,
            conv_bias: &self.conv_bias,
            dt_bias: &self.dt_bias,
            a_log: &self.a_log,
            d_skip: &self.d_skip,
            norm: &self.norm,
        }
    }

    fn sequences(&self) -> Sequences<'_> {
        Sequences { batch: self.batch, frames: self.frames, padding: &self.padding }
    }

    fn initial(&self) -> States<'_, f32> {
        States { conv: &self.conv_state, ssm: &self.ssm_state }
    }

    fn forward(&self, config: &Mamba2Config) -> mamba2::Forward {
        mamba2::forward(config, self.sequences(), &self.projected, &self.weights(), Some(self.initial()), true, true)
    }

    fn backward(&self, config: &Mamba2Config, saved: Option<&mamba2::Forward>) -> Gradients {
        mamba2::backward(
            config,
            self.sequences(),
            &self.projected,
            &self.weights(),
            Some(self.initial()),
            saved.map(|forward| (forward.scanned.as_slice(), forward.chunk_states.as_slice())),
            &self.d_output,
            Some(States { conv: &self.d_conv_state, ssm: &self.d_ssm_state }),
        )
    }

    /// Compares the fused path with the recurrence in f64, each result by itself.
    fn check(&self, limit: f64) {
        self.check_beside(limit, 0.0);
    }

    /// The same; a parameter's gradient counts for at least the share `least` of all of them together. One of one or
    /// two values is a sum over frames that may cancel to almost nothing, where f32 leaves few digits.
    fn check_beside(&self, limit: f64, least: f64) {
        let [
            projected,
            conv_weight,
            conv_bias,
            dt_bias,
            a_log,
            d_skip,
            norm,
            conv_state,
            ssm_state,
            d_output,
            d_conv,
            d_ssm,
        ] = [
            &self.projected,
            &self.conv_weight,
            &self.conv_bias,
            &self.dt_bias,
            &self.a_log,
            &self.d_skip,
            &self.norm,
            &self.conv_state,
            &self.ssm_state,
            &self.d_output,
            &self.d_conv_state,
            &self.d_ssm_state,
        ]
        .map(|values| wide(values));
        let weights = Weights {
            conv_weight: &conv_weight,
            conv_bias: &conv_bias,
            dt_bias: &dt_bias,
            a_log: &a_log,
            d_skip: &d_skip,
            norm: &norm,
        };
        let initial = States { conv: &conv_state, ssm: &ssm_state };
        let trace = plain::forward(&self.config, self.sequences(), &projected, &weights, Some(initial));
        let d_final = States { conv: &d_conv, ssm: &d_ssm };
        let expected = plain::backward(
            &self.config,
            self.sequences(),
            &projected,
            &weights,
            Some(initial),
            &trace,
            &d_output,
            Some(d_final),
        );
        let forward = self.forward(&self.config);
        let got = self.backward(&self.config, Some(&forward));
        let states = got.initial.as_ref().expect("there were initial states");
        let norm = |values: &[f64]| values.iter().map(|y| y * y).sum::<f64>().sqrt();
        let parameters = [
            &expected.conv_weight,
            &expected.conv_bias,
            &expected.dt_bias,
            &expected.a_log,
            &expected.d_skip,
            &expected.norm,
        ];
        let together = parameters.iter().map(|values| norm(values).powi(2)).sum::<f64>().sqrt();
        for (name, a, b) in [
            ("output", &forward.output, &trace.output),
            ("conv state", &forward.conv_state, &trace.conv_state),
            ("state", &forward.ssm_state, &trace.ssm_state),
            ("d projected", &got.projected, &expected.projected),
            ("d conv weight", &got.conv_weight, &expected.conv_weight),
            ("d conv bias", &got.conv_bias, &expected.conv_bias),
            ("d dt bias", &got.dt_bias, &expected.dt_bias),
            ("d a_log", &got.a_log, &expected.a_log),
            ("d skip", &got.d_skip, &expected.d_skip),
            ("d norm", &got.norm, &expected.norm),
            ("d conv state", &states.conv, &expected.conv_state),
            ("d state", &states.ssm, &expected.ssm_state),
        ] {
            let is_parameter = parameters.iter().any(|values| std::ptr::eq(*values, b));
            let found = distance_above(a, b, if is_parameter { least * together } else { 0.0 });
            assert!(
                found <= limit,
                "{name}: {found:.2e} above {limit:.0e} for {:?}, batch {}, frames {}",
                self.config,
                self.batch,
                self.frames
            );
        }
    }
}

fn config(head_width: usize, state: usize, heads: usize, groups: usize, chunk: usize) -> Mamba2Config {
    Mamba2Config { inner: head_width * heads, state, heads, groups, chunk }
}

/// One sequence without padding.
fn frames(frames: usize) -> Sequences<'static> {
    Sequences { batch: 1, frames, padding: &[] }
}

#[test]
fn padding_leaves_states_and_real_frames_as_without_it() {
    let config = config(16, 24, 2, 1, 16);
    for padding in [0, 1, 5, 16, 20, 40] {
        let mut case = Case::new(config, 2, 40, padding as u64);
        case.conv_state.fill(0.0);
        case.padding = vec![padding, 7];
        case.check(2e-5);
        let padded = case.forward(&config);
        let row = config.projected();
        let states = States {
            conv: &case.conv_state[..config.conv_state_size()],
            ssm: &case.ssm_state[..config.ssm_state_size()],
        };
        let bare = mamba2::forward(
            &config,
            frames(40 - padding),
            &case.projected[padding * row..40 * row],
            &case.weights(),
            Some(states),
            false,
            true,
        );
        assert!(distance(&padded.output[padding * config.inner..40 * config.inner], &wide(&bare.output)) < 1e-6);
        assert!(distance(&padded.ssm_state[..config.ssm_state_size()], &wide(&bare.ssm_state)) < 1e-6);
    }
}

#[test]
fn chunked_equals_the_recurrence_at_working_sizes() {
    for (frames, batch, config) in [
        (1, 2, config(64, 64, 4, 1, 64)),
        (7, 1, config(64, 64, 4, 1, 64)),
        (300, 1, config(64, 64, 4, 1, 64)),
        (300, 2, config(32, 48, 4, 2, 100)),
        (130, 3, config(16, 16, 6, 3, 32)),
        (2588, 1, config(16, 32, 2, 1, 256)),
    ] {
        Case::new(config, batch, frames, frames as u64).check(2e-5);
    }
}

#[test]
fn every_instruction_set_obeys_these_laws() {
    instruction_sets::repeat_without("every_instruction_set_obeys_these_laws", mambo_kernels::simd::LIMIT);
}

#[test]
fn saved_states_only_save_time() {
    let case = Case::new(config(32, 32, 4, 1, 32), 2, 75, 11);
    let forward = case.forward(&case.config);
    let (with, without) = (case.backward(&case.config, Some(&forward)), case.backward(&case.config, None));
    assert_eq!(with.projected, without.projected);
    assert_eq!(with.a_log, without.a_log);
}

/// Large enough together for other threads to help, too small alone.
#[test]
fn a_step_in_company_and_on_many_threads_gives_the_bytes_of_one_alone() {
    let config = config(64, 257, 10, 2, 64);
    let case = Case::new(config, 2, 1, 6);
    let step = |batch: usize, projected: &[f32], mut conv: Vec<f32>, mut ssm: Vec<f32>, threads: usize| {
        let mut out = vec![0.0; batch * config.inner];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| mamba2::step(&config, batch, projected, &case.weights(), &mut conv, &mut ssm, &mut out));
        [out, conv, ssm]
    };
    let together =
        [1, 3].map(|threads| step(2, &case.projected, case.conv_state.clone(), case.ssm_state.clone(), threads));
    assert_eq!(together[0], together[1]);
    let [conv, ssm] = [config.conv_state_size(), config.ssm_state_size()];
    for sequence in 0..2 {
        let projected = &case.projected[sequence * config.projected()..][..config.projected()];
        let own = [&case.conv_state[sequence * conv..][..conv], &case.ssm_state[sequence * ssm..][..ssm]];
        let alone = step(1, projected, own[0].to_vec(), own[1].to_vec(), 3);
        for (alone, together) in alone.iter().zip(&together[0]) {
            assert_eq!(alone, &together[sequence * alone.len()..][..alone.len()]);
        }
    }
}

#[test]
fn same_input_gives_same_bytes() {
    let case = Case::new(config(32, 32, 4, 1, 32), 3, 90, 12);
    let runs: Vec<_> = (0..3).map(|_| case.backward(&case.config, None)).collect();
    for run in &runs[1..] {
        assert_eq!(run.projected, runs[0].projected);
        assert_eq!(run.norm, runs[0].norm);
        assert_eq!(run.conv_weight, runs[0].conv_weight);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    // A norm over one to three channels has almost no gradient: rounding would be compared with rounding.
    #[test]
    fn any_size_equals_the_recurrence(
        frames in 1usize..70, batch in 1usize..3, width in 4usize..20, state in 1usize..20,
        per_group in 1usize..4, groups in 1usize..3, chunk in 1usize..40, seed in any::<u64>(),
    ) {
        Case::new(config(width, state, per_group * groups, groups, chunk), batch, frames, seed).check_beside(1e-4, 0.1);
    }

    #[test]
    fn chunk_length_never_changes_the_result(frames in 1usize..90, chunk in 1usize..100, seed in any::<u64>()) {
        let case = Case::new(config(16, 16, 2, 1, 16), 2, frames, seed);
        let other = Mamba2Config { chunk, ..case.config };
        let (a, b) = (case.forward(&case.config), case.forward(&other));
        prop_assert!(distance(&a.output, &wide(&b.output)) < 1e-5);
        prop_assert!(distance(&a.ssm_state, &wide(&b.ssm_state)) < 1e-5);
        prop_assert_eq!(&a.conv_state, &b.conv_state);
        let (a, b) = (case.backward(&case.config, Some(&a)), case.backward(&other, Some(&b)));
        prop_assert!(distance(&a.projected, &wide(&b.projected)) < 3e-5);
        prop_assert!(distance(&a.a_log, &wide(&b.a_log)) < 3e-4);
    }

    #[test]
    fn a_sequence_may_be_cut_anywhere(first in 1usize..40, second in 1usize..40, seed in any::<u64>()) {
        let config = config(16, 24, 2, 1, 16);
        let case = Case::new(config, 1, first + second, seed);
        let whole = case.forward(&config);
        let row = config.projected();
        let head = mamba2::forward(&config, frames(first), &case.projected[..first * row], &case.weights(), Some(case.initial()), false, true);
        let middle = States { conv: &head.conv_state, ssm: &head.ssm_state };
        let tail = mamba2::forward(&config, frames(second), &case.projected[first * row..], &case.weights(), Some(middle), false, true);
        let joined = [head.output.as_slice(), tail.output.as_slice()].concat();
        prop_assert!(distance(&joined, &wide(&whole.output)) < 1e-5);
        prop_assert!(distance(&tail.ssm_state, &wide(&whole.ssm_state)) < 1e-5);
        prop_assert_eq!(&tail.conv_state, &whole.conv_state);

        // Gradients through the cut: the second half's initial gradients are the first half's final ones.
        let expected = case.backward(&config, Some(&whole));
        let (d_head, d_tail) = case.d_output.split_at(first * config.inner);
        let d_final = States { conv: &case.d_conv_state, ssm: &case.d_ssm_state };
        let second_half = mamba2::backward(&config, frames(second), &case.projected[first * row..], &case.weights(), Some(middle), None, d_tail, Some(d_final));
        let at_cut = second_half.initial.as_ref().expect("there were initial states");
        let d_cut = States { conv: &at_cut.conv, ssm: &at_cut.ssm };
        let first_half = mamba2::backward(&config, frames(first), &case.projected[..first * row], &case.weights(), Some(case.initial()), None, d_head, Some(d_cut));
        let joined = [first_half.projected.as_slice(), second_half.projected.as_slice()].concat();
        prop_assert!(distance(&joined, &wide(&expected.projected)) < 3e-5);
        let weight: Vec<f32> = first_half.conv_weight.iter().zip(&second_half.conv_weight).map(|(a, b)| a + b).collect();
        prop_assert!(distance(&weight, &wide(&expected.conv_weight)) < 3e-5);
        let start = first_half.initial.expect("there were initial states");
        prop_assert!(distance(&start.ssm, &wide(&expected.initial.expect("there were initial states").ssm)) < 3e-5);
    }

    #[test]
    fn forward_equals_a_fold_of_steps(frames in 1usize..50, seed in any::<u64>()) {
        let config = config(16, 24, 4, 2, 16);
        let case = Case::new(config, 2, frames, seed);
        let whole = case.forward(&config);
        let (mut conv, mut ssm) = (case.conv_state.clone(), case.ssm_state.clone());
        let row = config.projected();
        let mut output = vec![0.0; whole.output.len()];
        for frame in 0..frames {
            let input: Vec<f32> = (0..2).flat_map(|s| case.projected[(s * frames + frame) * row..][..row].to_vec()).collect();
            let mut out = vec![0.0; 2 * config.inner];
            mamba2::step(&config, 2, &input, &case.weights(), &mut conv, &mut ssm, &mut out);
            for sequence in 0..2 {
                output[(sequence * frames + frame) * config.inner..][..config.inner].copy_from_slice(&out[sequence * config.inner..][..config.inner]);
            }
        }
        prop_assert!(distance(&output, &wide(&whole.output)) < 1e-5);
        prop_assert!(distance(&ssm, &wide(&whole.ssm_state)) < 1e-5);
        prop_assert_eq!(&conv, &whole.conv_state);
    }
}
