//! Every backbone and option against an independent reference: logits, gradients, final states, decoding.
//!
//! The golden files are made by `tools/reference/backbones.py` in float64.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData};
use half::f16;
use mambo_model::backbone::{Dropout, LayerState};
use mambo_model::clock::NO_BEAT;
use mambo_model::lm::{Columns, Lm, LmConfig, TextBatch};
use mambo_model::parameters::Parameters;
use mambo_model::stepper::{Column, Stepper};
use safetensors::{Dtype, SafeTensors};

const CASES: [&str; 8] = [
    "prefix_mamba",
    "prefix_simba",
    "prefix_simba_groups",
    "prefix_simba_mamba1",
    "prefix_simba_einfft",
    "cross_simba",
    "cross_transformer",
    "prefix_transformer",
];

/// One golden file.
struct Golden {
    bytes: Vec<u8>,
    config: LmConfig,
}

impl Golden {
    fn open(case: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{case}.safetensors"));
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let config = &metadata.metadata().as_ref().unwrap()["config"];
        let config: LmConfig = serde_json::from_str(config).unwrap();
        Self { bytes, config }
    }

    fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).is_ok()
    }

    fn values(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("no tensor `{name}`"));
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F16 => data.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f64()).collect(),
            Dtype::F32 => data.as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect(),
            Dtype::F64 => data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            Dtype::U16 => data.as_chunks().0.iter().map(|&b| f64::from(u16::from_le_bytes(b))).collect(),
            Dtype::I64 => data.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f64).collect(),
            other => panic!("{name}: {other:?}"),
        }
    }

    fn parameters(&self) -> Parameters {
        let mut parameters = self.config.blank().unwrap();
        for parameter in parameters.list_mut() {
            parameter.values = self.values(&parameter.name).iter().map(|&value| value as f32).collect();
            assert_eq!(parameter.values.len(), parameter.shape.iter().product::<usize>(), "{}", parameter.name);
        }
        parameters
    }

    fn codes(&self) -> Vec<u16> {
        self.values("codes").iter().map(|&code| code as u16).collect()
    }

    /// The text states of each clip without its padding.
    fn captions(&self) -> Vec<Vec<f32>> {
        let (states, width) = (self.values("text_states"), self.config.text_width);
        let lengths = self.values("text_lengths");
        let whole = states.len() / lengths.len();
        let caption = |(clip, &length): (usize, &f64)| {
            let size = length as usize * width;
            states[(clip + 1) * whole - size..(clip + 1) * whole].iter().map(|&value| value as f32).collect()
        };
        lengths.iter().enumerate().map(caption).collect()
    }
}

fn floats<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().try_to_vec_as::<f32>().unwrap()
}

/// `|a - b| / |b|` over all values.
fn assert_near(name: &str, found: impl IntoIterator<Item = f32>, expected: &[f64], most: f64) {
    let found: Vec<f32> = found.into_iter().collect();
    assert_eq!(found.len(), expected.len(), "{name}");
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let apart = square(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - b));
    let length = square(&mut expected.iter().copied());
    // A gradient that is nothing but rounding (a bias before softmax keys, say) has no length to compare with.
    assert!(apart <= most * length.max(1e-6), "{name}: {:e} apart, {length:e} long", apart / length);
}

/// `[B, T, K, cardinality]` from the logits of each codebook.
fn arranged(logits: &[Tensor<2>]) -> Vec<f32> {
    let books: Vec<Vec<f32>> = logits.iter().map(floats).collect();
    let size = logits[0].dims()[1];
    let rows = books[0].len() / size;
    (0..rows).flat_map(|row| books.iter().flat_map(move |book| book[row * size..(row + 1) * size].to_vec())).collect()
}

/// The sum of all logits times weights `[B, T, K, cardinality]`.
fn weighed(config: &LmConfig, logits: &[Tensor<2>], weights: &[f64]) -> Tensor<1> {
    let (books, size, device) = (config.codebooks, config.cardinality, logits[0].device());
    let of_book = |(book, logits): (usize, &Tensor<2>)| {
        let rows = weights.chunks_exact(size).skip(book).step_by(books).flatten();
        let rows: Vec<f32> = rows.map(|&weight| weight as f32).collect();
        (logits.clone() * Tensor::from_data(TensorData::new(rows, logits.dims()), &device)).sum()
    };
    logits.iter().enumerate().map(of_book).reduce(|sum, more| sum + more).unwrap()
}

#[test]
fn logits_gradients_and_states_match_the_reference() {
    for case in CASES {
        let golden = Golden::open(case);
        let config = &golden.config;
        let parameters = golden.parameters();
        let (codes, captions) = (golden.codes(), golden.captions());
        let batch = captions.len();
        let frames = codes.len() / batch / config.codebooks;
        let clock = vec![NO_BEAT; batch * frames];
        let columns = Columns { codes: &codes, clock: &clock, echoes: &[] };
        let texts: Vec<Option<&[f32]>> = captions.iter().map(|caption| Some(caption.as_slice())).collect();
        let text = TextBatch::new(config, &texts);

        let device = Device::flex().autodiff();
        let bound = parameters.bind(&device);
        let output = Lm::new(config, &bound).forward_with_text(&text, columns, &mut Dropout::off());
        let expected = golden.values("logits");
        assert_near(&format!("{case}: logits"), arranged(&output.logits), &expected, 1e-4);

        let weights = golden.values("loss_weights");
        let books = config.codebooks;
        let loss = weighed(config, &output.logits, &weights);
        let gradients = bound.gradients(loss.backward());
        for (parameter, gradient) in parameters.list().iter().zip(gradients) {
            let expected = golden.values(&format!("gradient.{}", parameter.name));
            assert_near(&format!("{case}: gradient of {}", parameter.name), gradient, &expected, 1e-4);
        }

        let plain = Lm::new(config, &parameters.bind(&Device::flex()));
        let (logits, state) = plain.forward(columns, batch, plain.start(&text));
        assert_near(&format!("{case}: start and forward"), arranged(&logits), &expected, 1e-4);
        let parts = config.backbone.sublayers();
        let mut states = 0;
        for (index, layer) in state.layers().iter().enumerate() {
            let name = format!("state.{}.{}", index / parts.len(), parts[index % parts.len()].name());
            let (conv, ssm) = match layer {
                LayerState::Mamba1(state) => (floats(&state.conv_biw), floats(&state.ssm_bin)),
                LayerState::Mamba2(state) => (floats(&state.conv_bcw), floats(&state.ssm_bhpn)),
                LayerState::KeyValues(_) | LayerState::Nothing => continue,
            };
            assert_near(&format!("{case}: {name}.conv"), conv, &golden.values(&format!("{name}.conv")), 1e-4);
            assert_near(&format!("{case}: {name}.ssm"), ssm, &golden.values(&format!("{name}.ssm")), 1e-4);
            states += 1;
        }
        assert_eq!(states > 0, config.backbone.has_ssm());

        // The slice decoder; the parameters are exact in f16.
        let stepper = Stepper::new(config, &parameters);
        for (clip, caption) in captions.iter().enumerate() {
            let mut state = stepper.start(Some(caption));
            let mut logits = Vec::new();
            for frame in 0..frames {
                let column: Vec<u16> = (0..books).map(|k| codes[(clip * books + k) * frames + frame]).collect();
                logits
                    .extend(stepper.step(Column { codes: &column, ticks: NO_BEAT, echoes: &[] }, &mut state).concat());
            }
            let part = &expected[clip * logits.len()..(clip + 1) * logits.len()];
            assert_near(&format!("{case}: decoding"), logits, part, 1e-4);
        }

        // Without a caption.
        let first = &codes[..books * frames];
        let columns = Columns { codes: first, clock: &clock[..frames], echoes: &[] };
        let bound = parameters.bind(&device);
        let model = Lm::new(config, &bound);
        let output = model.forward_with_text(&TextBatch::new(config, &[None]), columns, &mut Dropout::off());
        let expected = golden.values("uncaptioned.logits");
        assert_near(&format!("{case}: no caption"), arranged(&output.logits), &expected, 1e-4);
        assert_eq!(golden.has("uncaptioned.gradient.null_prefix"), config.null_tokens > 0);
        if config.null_tokens > 0 {
            let weights = golden.values("uncaptioned.loss_weights");
            let gradients = bound.gradients(weighed(config, &output.logits, &weights).backward());
            let at = parameters.list().iter().position(|parameter| parameter.name == "null_prefix").unwrap();
            let expected = golden.values("uncaptioned.gradient.null_prefix");
            assert_near(&format!("{case}: gradient of null_prefix"), gradients[at].clone(), &expected, 1e-4);
        }
    }
}
