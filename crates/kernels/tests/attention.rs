//! Attention against golden files of tools/reference/attention.py, and its laws: fused equals the definition, queries
//! alone give what they give among others, padding is never read, a step is the last row of the forward pass, the
//! number of threads is immaterial.

#![allow(clippy::unwrap_used)]

#[path = "common/golden_file.rs"]
mod golden_file;
#[path = "common/instruction_sets.rs"]
mod instruction_sets;
#[path = "common/numbers.rs"]
mod numbers;

use golden_file::Golden;
use mambo_kernels::attention::{self, Attention, Cache, Columns, ColumnsMut, Forward, plain};
use numbers::{distance, distance_above, uniform, wide};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Relative error allowed to the fused path in f32, and to the definition in f64.
const FUSED_LIMIT: f64 = 1e-4;
const PLAIN_LIMIT: f64 = 1e-9;

/// Queries `[.., d]`, keys and values `[.., 2 d]`.
fn split<'a, F>(attention: &Attention<'_>, query: &'a [F], key_value: &'a [F]) -> [Columns<'a, F>; 3] {
    let ([query], [key, value]) =
        (Columns::split(query, [attention.width()]), Columns::split(key_value, [attention.width(); 2]));
    [query, key, value]
}

/// Output and gradients of the fused passes, the latter written over garbage in the layout of [`split`].
fn fused(attention: &Attention<'_>, query: &[f32], key_value: &[f32], d_output: &[f32]) -> (Forward, [Vec<f32>; 2]) {
    let [q, k, v] = split(attention, query, key_value);
    let forward = attention::forward(attention, q, k, v);
    let (mut d_query, mut d_key_value) = (vec![f32::NAN; query.len()], vec![f32::NAN; key_value.len()]);
    let ([d_q], [d_k, d_v]) = (
        ColumnsMut::split(&mut d_query, [attention.width()]),
        ColumnsMut::split(&mut d_key_value, [attention.width(); 2]),
    );
    let saved = (forward.output.as_slice(), forward.log_sums.as_slice());
    attention::backward(attention, q, k, v, saved, d_output, [d_q, d_k, d_v]);
    (forward, [d_query, d_key_value])
}

/// Output and gradients by definition, laid out alike.
fn defined(attention: &Attention<'_>, query: &[f64], key_value: &[f64], d_output: &[f64]) -> [Vec<f64>; 3] {
    let [q, k, v] = split(attention, query, key_value);
    let output = plain::forward(attention, q, k, v);
    let d = plain::backward(attention, q, k, v, d_output);
    [output, d.query, beside(&d.key, &d.value, attention.width(), attention.width())]
}

/// Rows of `a` and of `b` side by side.
fn beside<F: Copy>(a: &[F], b: &[F], a_width: usize, b_width: usize) -> Vec<F> {
    a.chunks_exact(a_width).zip(b.chunks_exact(b_width)).flat_map(|(a, b)| [a, b].concat()).collect()
}

/// Compares a result; one that is zero (the gradient of a query that sees a single key) has no relative error.
fn check<F: Copy + Into<f64>>(golden: &Golden<'_>, name: &str, got: &[F], limit: f64) {
    if golden.wide(name).iter().any(|value| *value != 0.0) {
        golden.check(name, got, limit);
    } else {
        assert!(got.iter().all(|value| (*value).into().abs() <= limit), "{name} is not zero");
    }
}

#[test]
fn golden_files_of_1_7_and_300_positions() {
    for length in [1, 7, 300] {
        let bytes = golden_file::read(&format!("attention_{length}"));
        let golden = Golden::open(&bytes);
        let sizes = golden.sizes();
        let [length, last, text, heads, head_width] = sizes[..5].try_into().unwrap();
        let paddings = &sizes[5..];
        for (case, queries, keys, causal, padding) in [
            ("self", length, length, true, &paddings[..2]),
            ("last", last, length + 2, true, &paddings[2..4]),
            ("cross", length, text, false, &paddings[4..]),
        ] {
            let attention = Attention { batch: 2, queries, keys, heads, head_width, causal, padding };
            let [query, key_value, upstream] = ["query", "key_value", "upstream"].map(|part| format!("{case}.{part}"));
            let results = ["output", "d_query", "d_key_value"].map(|part| format!("{case}.{part}"));
            let wide = |name: &str| golden.wide(name);
            let got = defined(&attention, &wide(&query), &wide(&key_value), &wide(&upstream));
            results.iter().zip(&got).for_each(|(name, values)| check(&golden, name, values, PLAIN_LIMIT));
            let narrow = |name: &str| golden.narrow(name);
            let (forward, [d_query, d_key_value]) =
                fused(&attention, &narrow(&query), &narrow(&key_value), &narrow(&upstream));
            let got = [forward.output, d_query, d_key_value];
            results.iter().zip(&got).for_each(|(name, values)| check(&golden, name, values, FUSED_LIMIT));
        }
    }
}

/// Drawn inputs of an attention.
struct Case<'a> {
    attention: Attention<'a>,
    query: Vec<f32>,
    key_value: Vec<f32>,
    d_output: Vec<f32>,
}

impl<'a> Case<'a> {
    fn new(attention: Attention<'a>, seed: u64) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let (queries, keys) = (attention.batch * attention.queries, attention.batch * attention.keys);
        Self {
            attention,
            query: uniform(rng, queries * attention.width(), -2.0, 2.0),
            key_value: uniform(rng, keys * 2 * attention.width(), -2.0, 2.0),
            d_output: uniform(rng, queries * attention.width(), -1.0, 1.0),
        }
    }

    fn fused(&self) -> (Forward, [Vec<f32>; 2]) {
        fused(&self.attention, &self.query, &self.key_value, &self.d_output)
    }

    /// Compares the fused passes with the definition in f64.
    fn check(&self, limit: f64) {
        let [query, key_value, d_output] = [&self.query, &self.key_value, &self.d_output].map(|values| wide(values));
        let expected = defined(&self.attention, &query, &key_value, &d_output);
        let (forward, [d_query, d_key_value]) = self.fused();
        let got = [forward.output, d_query, d_key_value];
        for ((name, got), expected) in ["output", "d query", "d key and value"].iter().zip(&got).zip(&expected) {
            let off = distance(got, expected);
            assert!(off <= limit, "{name}: {off:.2e} above {limit:.0e} for {:?}", self.attention);
        }
    }
}

/// One sequence of causal self-attention without padding.
fn causal(length: usize, heads: usize, head_width: usize) -> Attention<'static> {
    Attention { batch: 1, queries: length, keys: length, heads, head_width, causal: true, padding: &[] }
}

#[test]
fn the_length_of_half_a_minute_equals_the_definition() {
    Case::new(causal(2588, 1, 64), 1).check(FUSED_LIMIT);
}

#[test]
fn every_instruction_set_obeys_these_laws() {
    instruction_sets::repeat_without("every_instruction_set_obeys_these_laws", mambo_kernels::simd::LIMIT);
}

#[test]
fn thread_count_cannot_change_a_byte() {
    let case = Case::new(Attention { batch: 2, padding: &[3, 80], ..causal(200, 3, 24) }, 3);
    let attention = &case.attention;
    let long = uniform(&mut ChaCha8Rng::seed_from_u64(4), 2000 * 2 * 72, -2.0, 2.0);
    let [keys, values] = Columns::split(&long, [72; 2]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            let (forward, gradients) = case.fused();
            let mut stepped = vec![0.0; attention.width()];
            attention::step(3, &case.query[..attention.width()], &[Cache { keys, values }], &mut stepped);
            (forward.output, forward.log_sums, gradients, stepped)
        })
    };
    let one = run(1);
    assert_eq!(one, run(3));
    assert_eq!(one, run(8));
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    let mut case = Case::new(causal(100, 2, 16), 5);
    case.query.iter_mut().for_each(|value| *value *= 100.0);
    case.check(FUSED_LIMIT);
}

/// Sizes of a causal or cross attention with padding; some queries may see no key.
fn any_attention() -> impl Strategy<Value = (usize, usize, usize, usize, bool, Vec<usize>)> {
    (1usize..150, 0usize..150, 1usize..4, 1usize..40, any::<bool>()).prop_flat_map(
        |(queries, more, heads, head_width, causal)| {
            let keys = if causal { queries + more } else { more + 1 };
            let padding = prop_oneof![Just(Vec::new()), prop::collection::vec(0..=keys, 2)];
            (Just(queries), Just(keys), Just(heads), Just(head_width), Just(causal), padding)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_size_equals_the_definition((queries, keys, heads, head_width, causal, padding) in any_attention(), seed in any::<u64>()) {
        Case::new(Attention { batch: 2, queries, keys, heads, head_width, causal, padding: &padding }, seed).check(3e-5);
    }

    #[test]
    fn the_last_queries_alone_give_what_they_give_among_all(length in 1usize..200, part in 0.0f64..1.0, padding in 0usize..100, seed in any::<u64>()) {
        let padding = &[padding.min(length)];
        let whole = Case::new(Attention { padding, ..causal(length, 2, 12) }, seed);
        let queries = 1 + (part * (length - 1) as f64) as usize;
        let from = (length - queries) * 24;
        let last = Case {
            attention: Attention { queries, ..whole.attention },
            query: whole.query[from..].to_vec(),
            key_value: whole.key_value.clone(),
            d_output: whole.d_output[from..].to_vec(),
        };
        let ((all, all_gradients), (some, some_gradients)) = (whole.fused(), last.fused());
        prop_assert_eq!(&all.output[from..], &some.output);
        prop_assert_eq!(&all_gradients[0][from..], &some_gradients[0]);
    }

    #[test]
    fn padding_is_never_read((queries, keys, heads, head_width, causal, padding) in any_attention(), seed in any::<u64>()) {
        let padding: Vec<usize> = padding.iter().map(|count| count / 2).collect();
        let mut case = Case::new(Attention { batch: 2, queries, keys, heads, head_width, causal, padding: &padding }, seed);
        let (before, gradients) = case.fused();
        let row = 2 * case.attention.width();
        for (sequence, count) in padding.iter().enumerate() {
            case.key_value[sequence * keys * row..][..count * row].fill(f32::NAN);
        }
        let (after, gradients_after) = case.fused();
        prop_assert_eq!(&before.output, &after.output);
        prop_assert_eq!(&gradients, &gradients_after);
        for (sequence, count) in padding.iter().enumerate() {
            prop_assert!(gradients[1][sequence * keys * row..][..count * row].iter().all(|value| *value == 0.0));
            // What is left of the sequence gives the same without the padding.
            let rest = keys - count;
            if causal && rest < queries {
                continue;
            }
            let width = case.attention.width();
            let bare = Case {
                attention: Attention { batch: 1, keys: rest, padding: &[], ..case.attention },
                query: case.query[sequence * queries * width..][..queries * width].to_vec(),
                key_value: case.key_value[(sequence * keys + count) * row..][..rest * row].to_vec(),
                d_output: case.d_output[sequence * queries * width..][..queries * width].to_vec(),
            };
            let (forward, [d_query, d_key_value]) = bare.fused();
            let part = sequence * queries * width..(sequence + 1) * queries * width;
            prop_assert_eq!(&before.output[part.clone()], &forward.output);
            prop_assert_eq!(&gradients[0][part], &d_query);
            prop_assert_eq!(&gradients[1][(sequence * keys + count) * row..][..rest * row], &d_key_value);
        }
    }

    #[test]
    fn a_fused_projection_gives_what_its_parts_give(length in 1usize..100, heads in 1usize..4, head_width in 1usize..20, seed in any::<u64>()) {
        let case = Case::new(causal(length, heads, head_width), seed);
        let width = case.attention.width();
        let (parts, [d_query, d_key_value]) = case.fused();
        let projected = beside(&case.query, &case.key_value, width, 2 * width);
        let [q, k, v] = Columns::split(&projected, [width; 3]);
        let forward = attention::forward(&case.attention, q, k, v);
        prop_assert_eq!(&forward.output, &parts.output);
        let mut d_projected = vec![f32::NAN; projected.len()];
        let gradients = ColumnsMut::split(&mut d_projected, [width; 3]);
        attention::backward(&case.attention, q, k, v, (&forward.output, &forward.log_sums), &case.d_output, gradients);
        prop_assert_eq!(d_projected, beside(&d_query, &d_key_value, width, 2 * width));
    }

    #[test]
    fn a_step_is_the_last_row_of_the_forward_pass(lengths in prop::collection::vec(0usize..200, 1..4), heads in 1usize..4, head_width in 1usize..40, seed in any::<u64>()) {
        let width = heads * head_width;
        let cases: Vec<Case<'_>> = lengths
            .iter()
            .enumerate()
            .map(|(index, length)| Case::new(causal(*length, heads, head_width), seed.wrapping_add(index as u64)))
            .collect();
        let caches: Vec<Cache<'_>> = cases
            .iter()
            .map(|case| {
                let [keys, values] = Columns::split(&case.key_value, [width; 2]);
                Cache { keys, values }
            })
            .collect();
        let last = |values: &[f32]| if values.is_empty() { vec![0.0; width] } else { values[values.len() - width..].to_vec() };
        let queries: Vec<f32> = cases.iter().flat_map(|case| last(&case.query)).collect();
        let mut out = vec![f32::NAN; queries.len()];
        attention::step(heads, &queries, &caches, &mut out);
        for (case, out) in cases.iter().zip(out.chunks_exact(width)) {
            // An average of many values may be nearly zero, its rounding error then is not: values of one set the scale.
            let expected = wide(&last(&case.fused().0.output));
            let off = distance_above(out, &expected, (width as f64).sqrt());
            prop_assert!(off < 3e-6, "{off:.2e} for {:?}", case.attention);
        }
    }
}

#[test]
fn attention_with_biases_is_its_definition() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for (rows, heard, heads, width) in [(1, 1, 1, 8), (7, 3, 2, 5), (64, 64, 3, 16), (150, 131, 2, 64)] {
        let projected = uniform(&mut rng, rows * 3 * heads * width, -2.0, 2.0);
        let biases = uniform(&mut rng, heads * (2 * rows - 1), -2.0, 2.0);
        let [query, key, value] = Columns::split(&projected, [heads * width; 3]);
        let mut out = vec![f32::NAN; rows * heads * width];
        attention::biased(heads, heard, query, key, value, &biases, &mut out);
        let (projected, biases) = (wide(&projected), wide(&biases));
        let [query, key, value] = Columns::split(&projected, [heads * width; 3]);
        let expected = plain::biased(heads, heard, query, key, value, &biases);
        let error = distance(&out, &expected);
        assert!(error <= 1e-5, "{rows} rows, {heard} heard: {error}");
    }
}

#[test]
fn a_number_for_each_distance_moves_attention_there() {
    // All keys alike: only the biases choose, one place ahead for the first head and the own place for the second.
    let (rows, heads, width) = (5, 2, 3);
    let projected: Vec<f32> = (0..rows).flat_map(|row| [[1.0; 6], [1.0; 6], [row as f32; 6]].concat()).collect();
    let mut biases = vec![0.0; heads * (2 * rows - 1)];
    biases[rows] = 60.0;
    biases[2 * rows - 1 + rows - 1] = 60.0;
    let [query, key, value] = Columns::split(&projected, [heads * width; 3]);
    let mut out = vec![0.0; rows * heads * width];
    attention::biased(heads, rows, query, key, value, &biases, &mut out);
    for (row, out) in out.chunks_exact(heads * width).enumerate().take(rows - 1) {
        let error = distance(out, &[[row as f64 + 1.0; 3], [row as f64; 3]].concat());
        assert!(error <= 1e-6, "query {row}: {out:?}");
    }
}
