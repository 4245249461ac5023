//! The published SSM-TTM model from its checkpoint to logits, against the float64 forward pass of
//! tools/reference/ssm_ttm.py; and checkpoints that hold another model.
#![allow(clippy::unwrap_used)]

mod checkpoints;

use burn::tensor::Device;
use checkpoints::{Tensor, floats, golden, lightning, open, piece};
use mambo_model::checkpoint::{CheckpointError, ssm_ttm};
use mambo_model::generate::{LanguageModel, LmFile};
use mambo_model::lm::{Columns, Lm, TextBatch};
use mambo_model::parameters::Precision;
use mambo_model::sampler::Sampling;
use mambo_model::weights::WeightsError;
use safetensors::SafeTensors;

struct Reference {
    text: Vec<f32>,
    /// `[K, T]`.
    codes: Vec<u16>,
    /// `[K, T + 1, vocabulary]`.
    logits: Vec<f64>,
}

fn reference() -> Reference {
    let bytes = std::fs::read(golden("ssm_ttm.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let of = |name: &str| file.tensor(name).unwrap().data().to_vec();
    Reference {
        text: of("text").chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        codes: of("codes").chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as u16).collect(),
        logits: of("logits").chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
    }
}

fn imported() -> ssm_ttm::SsmTtm {
    ssm_ttm::read(&golden("ssm_ttm.ckpt"), &mut |_, _| {}).unwrap()
}

#[test]
fn an_imported_model_gives_the_published_logits() {
    let folder = tempfile::tempdir().unwrap();
    let (file, parameters) = imported().into_model().unwrap();
    file.save_as(folder.path(), &parameters, Precision::F32).unwrap();
    let (loaded, weights) = LmFile::load(folder.path()).unwrap();
    assert_eq!(loaded, file);
    for (a, b) in weights.list().iter().zip(parameters.list()) {
        assert_eq!((&a.name, &a.shape, &a.values), (&b.name, &b.shape, &b.values));
    }
    assert_eq!((file.codec.name.as_str(), file.codec.hop, file.codec.levels), ("dac", 512, 9));
    assert_eq!(file.model.delays, [0, 1]);
    file.sampling.validate().unwrap();

    let Reference { text, codes, logits } = reference();
    let (books, frames) = (file.model.codebooks, codes.len() / file.model.codebooks);
    let vocabulary = file.model.cardinality + 1;
    let lm = Lm::new(&file.model, &parameters.bind(&Device::flex()));
    let state = lm.start(&TextBatch::new(&file.model, &[Some(&text)]));
    let (got, _) = lm.forward(Columns { codes: &codes, clock: &[], echoes: &[] }, 1, state);
    let (mut distance, mut length) = (0.0, 0.0);
    for (k, got) in got.into_iter().enumerate() {
        let got = got.into_data().try_into_vec::<f32>().unwrap();
        assert_eq!(got.len(), frames * (vocabulary - 1));
        for (t, row) in got.chunks_exact(vocabulary - 1).enumerate() {
            // The first published column is predicted from the text and never used; the last logit is the special token's.
            let expected = &logits[(k * (frames + 1) + t + 1) * vocabulary..][..vocabulary - 1];
            distance += row.iter().zip(expected).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>();
            length += expected.iter().map(|b| b.powi(2)).sum::<f64>();
        }
    }
    assert_eq!(books * (frames + 1) * vocabulary, logits.len());
    let relative = (distance / length).sqrt();
    assert!(relative <= 1e-5, "logits differ by {relative:.2e} from the reference");

    let model = LanguageModel::open(folder.path()).unwrap();
    let sampling = Sampling { window: 0, ..file.sampling };
    let clip: Vec<Vec<u16>> = model.generate(Some(&text), &sampling, 3).unwrap().take(20).collect();
    assert!(clip.iter().all(|frame| frame.len() == books && frame.iter().all(|&code| code < 16)), "{clip:?}");
}

/// A small model's names and shapes: width 32, one head, one block.
fn small() -> Vec<(&'static str, Vec<i64>)> {
    vec![
        ("music_model.condition_norm.weight", vec![32]),
        ("music_model.condition_norm.bias", vec![32]),
        ("music_model.condition_linear.weight", vec![32, 8]),
        ("music_model.condition_linear.bias", vec![32]),
        ("music_model.embedding.0.weight", vec![9, 32]),
        ("music_model.lm_head.0.weight", vec![9, 32]),
        ("music_model.backbone.0.mamba.norm.weight", vec![32]),
        ("music_model.backbone.0.mamba.mamba.in_proj.weight", vec![137, 32]),
        ("music_model.backbone.0.mamba.mamba.conv1d.weight", vec![72, 1, 4]),
        ("music_model.backbone.0.mamba.mamba.conv1d.bias", vec![72]),
        ("music_model.backbone.0.mamba.mamba.dt_bias", vec![1]),
        ("music_model.backbone.0.mamba.mamba.A_log", vec![1]),
        ("music_model.backbone.0.mamba.mamba.D", vec![1]),
        ("music_model.backbone.0.mamba.mamba.norm.weight", vec![64]),
        ("music_model.backbone.0.mamba.mamba.out_proj.weight", vec![32, 64]),
        ("music_model.backbone.0.ff.norm.weight", vec![32]),
        ("music_model.backbone.0.ff.feed_forward.0.weight", vec![64, 32]),
        ("music_model.backbone.0.ff.feed_forward.0.bias", vec![64]),
        ("music_model.backbone.0.ff.feed_forward.3.weight", vec![32, 64]),
        ("music_model.backbone.0.ff.feed_forward.3.bias", vec![32]),
        ("text_encoder.shared.weight", vec![4, 8]),
        ("loss.weight", vec![2]),
    ]
}

fn read(state: &[(&str, Vec<i64>)], hyperparameters: &[(&str, Vec<u8>)]) -> Result<ssm_ttm::SsmTtm, CheckpointError> {
    let keys: Vec<String> = (0..state.len()).map(|n| n.to_string()).collect();
    let tensors: Vec<(&str, Tensor)> =
        state.iter().zip(&keys).map(|((name, shape), key)| (*name, Tensor::plain(key, shape))).collect();
    let storages: Vec<(&str, Vec<u8>)> = tensors
        .iter()
        .zip(&keys)
        .map(|((_, tensor), key)| (key.as_str(), floats((0..tensor.count).map(|n| n as f32))))
        .collect();
    let model = piece::dictionary(hyperparameters);
    let config = piece::dictionary(&[("config", piece::dictionary(&[("model", model)]))]);
    let bytes = lightning(&tensors, &storages, &[("global_step", piece::int(7)), ("hyper_parameters", config)]);
    ssm_ttm::read_from(open(bytes)?, &mut |_, _| {})
}

#[test]
fn sizes_follow_from_the_tensors() {
    let model = read(&small(), &[("d_state", piece::int(4)), ("vocab_size", piece::int(9))]).unwrap();
    let sizes = ssm_ttm::Sizes {
        codebooks: 1,
        cardinality: 8,
        d_model: 32,
        layers: 1,
        d_state: 4,
        inner: 64,
        feed_forward: 64,
        text_width: 8,
    };
    assert_eq!((&model.sizes, model.step), (&sizes, Some(7)));
    assert_eq!(model.left_out, ssm_ttm::LeftOut { text_encoder: 1, other_state: 1, elsewhere: 0 });
    let (file, parameters) = model.into_model().unwrap();
    assert_eq!((file.model.expand, file.model.ff_multiple), (2, 2));
    assert_eq!(parameters.list().len(), 20);
    assert_eq!(parameters.get("condition_linear.bias").unwrap().values[31], 31.0);
}

#[test]
fn another_model_is_named() {
    for at in 0..small().len() - 2 {
        let mut state = small();
        let (name, _) = state.remove(at);
        let error = read(&state, &[]).unwrap_err();
        let missing = matches!(&error, CheckpointError::Tensor(WeightsError::Missing { name: n, .. }) if n == name);
        // Without its first norm a block is not counted, and its other tensors are too many.
        let unexpected = matches!(&error, CheckpointError::Tensor(WeightsError::Unexpected { .. }));
        assert!(missing || (unexpected && name.contains("mamba.norm")), "{name}: {error}");
    }
    let with = |name: &'static str, shape: &[i64]| {
        let mut state = small();
        state.retain(|(other, _)| *other != name);
        state.push((name, shape.into()));
        read(&state, &[]).unwrap_err()
    };
    let shape = with("music_model.backbone.0.mamba.mamba.out_proj.weight", &[64, 32]);
    assert!(matches!(&shape, CheckpointError::Tensor(WeightsError::Shape { expected, .. }) if expected == &[32, 64]));
    let unexpected = with("music_model.backbone.0.cross_attention.q_proj.weight", &[2]);
    assert!(matches!(&unexpected, CheckpointError::Tensor(WeightsError::Unexpected { .. })), "{unexpected}");
    assert!(unexpected.to_string().contains("music_model.backbone.0.cross_attention.q_proj.weight"), "{unexpected}");
    for (name, odd, what) in [
        ("music_model.backbone.0.mamba.mamba.in_proj.weight", &[136, 32][..], "none of Mamba-2"),
        ("music_model.backbone.0.mamba.mamba.in_proj.weight", &[7, 32], "none of Mamba-2"),
        ("music_model.backbone.0.mamba.mamba.conv1d.bias", &[0], "none of Mamba-2"),
        ("music_model.backbone.0.mamba.mamba.conv1d.bias", &[72, 1], "expected 1 dimensions"),
        ("music_model.condition_linear.weight", &[0, 8], "width 0"),
        ("music_model.condition_linear.weight", &[33, 8], "width 33"),
        ("music_model.embedding.0.weight", &[1, 32], "a table of 1 rows"),
        ("music_model.backbone.0.ff.feed_forward.0.weight", &[65, 32], "65"),
    ] {
        let error = with(name, odd);
        assert!(
            matches!(error, CheckpointError::Content { .. }) && error.to_string().contains(what),
            "{name}: {error}"
        );
    }
    let error = read(&small(), &[("layers", piece::int(24))]).unwrap_err();
    assert!(error.to_string().contains("layers = 24, its tensors 1"), "{error}");
    assert!(read(&small(), &[("layers", piece::text("one"))]).is_err());
    let none = read(&[("music_model.x", vec![1])], &[]).unwrap_err();
    assert!(none.to_string().contains("condition_linear.weight is missing"), "{none}");
    let empty = read(&[], &[]).unwrap_err();
    assert!(empty.to_string().contains("`state_dict` holds no tensor"), "{empty}");
}
