//! Convolutions against their definition: any size, stride, dilation and groups, and the transpose.

#![allow(clippy::unwrap_used)]

#[path = "common/instruction_sets.rs"]
mod instruction_sets;
#[path = "common/numbers.rs"]
mod numbers;

use mambo_kernels::conv1d::{Conv1d, ConvSizes, ConvTranspose1d, plain};
use numbers::{distance, uniform, wide};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Relative error allowed in f32.
const LIMIT: f64 = 1e-5;

fn check(sizes: ConvSizes, frames: usize, seed: u64) {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let x = uniform(rng, frames * sizes.inputs, -1.0, 1.0);
    let (weight, bias) = (uniform(rng, sizes.weights(), -1.0, 1.0), uniform(rng, sizes.outputs, -1.0, 1.0));
    let expected = plain::forward(&sizes, &wide(&x), &wide(&weight), &wide(&bias));
    let got = Conv1d::new(sizes, &weight, &bias).forward(&x);
    assert_eq!(got.len(), expected.len(), "{sizes:?}");
    assert!(got.is_empty() || distance(&got, &expected) < LIMIT, "{sizes:?}, {frames} frames");
}

#[test]
fn the_sizes_of_neural_codecs_equal_the_definition() {
    let one = ConvSizes::new(1, 64, 7);
    let wide = ConvSizes::new(96, 96, 7);
    check(one, 300, 1);
    check(ConvSizes { dilation: 9, ..wide }, 300, 2);
    check(ConvSizes { dilation: 3, ..ConvSizes::new(64, 64, 7) }, 300, 3);
    check(ConvSizes { stride: 8, ..ConvSizes::new(64, 128, 16) }, 300, 4);
    check(ConvSizes::new(96, 1, 7), 300, 5);
    check(ConvSizes { groups: 96, ..wide }, 300, 6);
    check(wide, 6, 7);
}

#[test]
fn every_instruction_set_obeys_these_laws() {
    instruction_sets::repeat_without("every_instruction_set_obeys_these_laws", mambo_kernels::simd::LIMIT);
}

#[test]
fn thread_count_cannot_change_a_byte() {
    let rng = &mut ChaCha8Rng::seed_from_u64(8);
    for outputs in [1, 32, 100] {
        let sizes = ConvSizes { dilation: 3, ..ConvSizes::new(40, outputs, 5) };
        let x = uniform(rng, 1000 * 40, -1.0, 1.0);
        let (weight, bias) = (uniform(rng, sizes.weights(), -1.0, 1.0), uniform(rng, outputs, -1.0, 1.0));
        let conv = Conv1d::new(sizes, &weight, &bias);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| conv.forward(&x))
        };
        assert_eq!(run(1), run(3));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_size_equals_the_definition(
        inputs in 1usize..12,
        outputs in prop_oneof![1usize..12, Just(70usize)],
        taps in 1usize..6,
        stride in 1usize..4,
        dilation in 1usize..4,
        groups in 1usize..4,
        frames in 0usize..220,
        seed in any::<u64>(),
    ) {
        check(ConvSizes { inputs: inputs * groups, outputs: outputs * groups, taps, stride, dilation, groups }, frames, seed);
    }

    #[test]
    fn any_transpose_equals_the_definition(
        inputs in 1usize..12,
        outputs in 1usize..12,
        taps in 1usize..10,
        stride in 1usize..6,
        frames in 1usize..60,
        seed in any::<u64>(),
    ) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let x = uniform(rng, frames * inputs, -1.0, 1.0);
        let (weight, bias) = (uniform(rng, inputs * outputs * taps, -1.0, 1.0), uniform(rng, outputs, -1.0, 1.0));
        let expected = plain::transposed(inputs, taps, stride, &wide(&x), &wide(&weight), &wide(&bias));
        let conv = ConvTranspose1d::new(inputs, outputs, taps, stride, &weight, &bias);
        let margin = vec![0.0; conv.margin() * inputs];
        let got = conv.forward(&[margin.as_slice(), &x, &margin].concat());
        prop_assert!(distance(&got[..expected.len()], &expected) < LIMIT);
    }
}
