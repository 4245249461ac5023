//! Small sound files of each kind, and unsound ones of kinds that a change would hardly come upon.

use super::{archives, headers};
use crate::checkpoints::{Tensor, archive, floats, lightning, piece};

/// Weights in several types, quantised matrices, metadata.
pub fn safetensors() -> Vec<Vec<u8>> {
    let of = |header: &str, length: usize| headers::join(header.as_bytes(), &vec![0; length]);
    vec![
        of(
            r#"{"__metadata__":{"format":"x-1"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "h":{"dtype":"F16","shape":[1,2],"data_offsets":[8,12]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[12,16]},
            "q":{"dtype":"I8","shape":[2,2],"data_offsets":[16,20]},
            "q.scale":{"dtype":"F32","shape":[2,1],"data_offsets":[20,28]}}"#,
            28,
        ),
        of(
            r#"{"q":{"dtype":"I8","shape":[1,6],"data_offsets":[0,6]},"q.scale":{"dtype":"F16","shape":[1,3],"data_offsets":[6,12]},
            "none":{"dtype":"I8","shape":[1,0],"data_offsets":[12,12]},
            "scalar":{"dtype":"I64","shape":[],"data_offsets":[12,20]}}"#,
            20,
        ),
        of("{}", 0),
        of(r#"{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}"#, 2),
    ]
}

/// A language model as small as one can be, by the names of the published one.
fn smallest_model() -> Vec<(&'static str, Vec<i64>)> {
    vec![
        ("music_model.condition_norm.weight", vec![1]),
        ("music_model.condition_norm.bias", vec![1]),
        ("music_model.condition_linear.weight", vec![1, 1]),
        ("music_model.condition_linear.bias", vec![1]),
        ("music_model.embedding.0.weight", vec![2, 1]),
        ("music_model.lm_head.0.weight", vec![2, 1]),
        ("music_model.backbone.0.mamba.norm.weight", vec![1]),
        ("music_model.backbone.0.mamba.mamba.in_proj.weight", vec![131, 1]),
        ("music_model.backbone.0.mamba.mamba.conv1d.weight", vec![66, 1, 4]),
        ("music_model.backbone.0.mamba.mamba.conv1d.bias", vec![66]),
        ("music_model.backbone.0.mamba.mamba.dt_bias", vec![1]),
        ("music_model.backbone.0.mamba.mamba.A_log", vec![1]),
        ("music_model.backbone.0.mamba.mamba.D", vec![1]),
        ("music_model.backbone.0.mamba.mamba.norm.weight", vec![64]),
        ("music_model.backbone.0.mamba.mamba.out_proj.weight", vec![1, 64]),
        ("music_model.backbone.0.ff.norm.weight", vec![1]),
        ("music_model.backbone.0.ff.feed_forward.0.weight", vec![1, 1]),
        ("music_model.backbone.0.ff.feed_forward.0.bias", vec![1]),
        ("music_model.backbone.0.ff.feed_forward.3.weight", vec![1, 1]),
        ("music_model.backbone.0.ff.feed_forward.3.bias", vec![1]),
        ("text_encoder.shared.weight", vec![1]),
    ]
}

/// Checkpoints: one tensor in strange strides, the smallest language model, sizes of a codec.
pub fn checkpoints() -> Vec<Vec<u8>> {
    let strided = Tensor { offset: 1, shape: vec![2, 2], strides: vec![1, 3], ..Tensor::plain("0", &[6]) };
    let gaps = Tensor { shape: vec![2, 2], strides: vec![0, 5], ..Tensor::plain("0", &[6]) };
    let storage = ("0", floats([0.5; 6]));
    let config = piece::dictionary(&[("layers", piece::int(1)), ("d_state", piece::int(1))]);
    let config = piece::dictionary(&[("config", piece::dictionary(&[("model", config)]))]);
    let more = [("global_step", piece::int(7)), ("hyper_parameters", config)];
    let keys: Vec<String> = (0..smallest_model().len()).map(|n| n.to_string()).collect();
    let model: Vec<(&str, Tensor)> =
        smallest_model().iter().zip(&keys).map(|((name, shape), key)| (*name, Tensor::plain(key, shape))).collect();
    let storages: Vec<(&str, Vec<u8>)> = model
        .iter()
        .zip(&keys)
        .map(|((_, tensor), key)| (key.as_str(), floats((0..tensor.count).map(|_| 0.5))))
        .collect();
    let mut all = vec![
        lightning(&[("a", strided), ("b", gaps)], std::slice::from_ref(&storage), &more),
        lightning(&model, &storages, &more),
        lightning(&[("a", Tensor::plain("0", &[6]))], &[storage], &[("metadata", codec_sizes())]),
    ];
    all.extend(pickles().iter().map(|pickle| archive(pickle)));
    all.push(wide(&all[0]));
    all
}

fn codec_sizes() -> Vec<u8> {
    let rates = [b"]".to_vec(), piece::int(2), b"a".to_vec()].concat();
    let size = |name: &'static str, size: i64| (name, piece::int(size));
    let sizes = [
        size("encoder_dim", 1),
        ("encoder_rates", rates.clone()),
        size("decoder_dim", 2),
        ("decoder_rates", rates),
        size("n_codebooks", 1),
        size("codebook_size", 2),
        size("codebook_dim", 1),
        size("sample_rate", 8000),
    ];
    piece::dictionary(&[("kwargs", piece::dictionary(&sizes))])
}

/// The same archive with a 64-bit end, as PyTorch writes it.
fn wide(archive: &[u8]) -> Vec<u8> {
    let (before, end) = archive.split_at(archive.len() - 22);
    let field = |at: usize| u64::from(u32::from_le_bytes([end[at], end[at + 1], end[at + 2], end[at + 3]]));
    let count = u64::from(u16::from_le_bytes([end[10], end[11]]));
    let mut bytes = before.to_vec();
    bytes.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    for number in [count, count, field(12), field(16)] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(b"PK\x06\x07\0\0\0\0");
    bytes.extend((before.len() as u64).to_le_bytes());
    bytes.extend(b"\x01\0\0\0");
    bytes.extend(end);
    bytes
}

/// Pickles of each protocol and of what may stand in them, and one of each that would run something.
pub fn pickles() -> Vec<Vec<u8>> {
    let tensor = Tensor::plain("0", &[2, 3]).pickle();
    let namespace =
        [b"cargparse\nNamespace\n)\x81".to_vec(), piece::dictionary(&[("a", tensor.clone())]), b"b".to_vec()];
    let typed = b"ctorch._utils\n_rebuild_tensor_v3\n((\x8c\x07storagectorch.storage\nUntypedStorage\n\x8c\x011\x8c\x03cpuK\x18tQ\
        K\x00K\x02K\x02\x86K\x06K\x03\x86\x89ccollections\nOrderedDict\n)Rctorch\nbfloat16\ntR";
    let plain = b"(NG\x3f\xf0\x00\x00\x00\x00\x00\x00\x88\x89K\x01M\x01\x01J\xff\xff\xff\xff\x8a\x09\x01\x01\x01\x01\x01\x01\x01\x01\x01\
        C\x01xB\x01\x00\x00\x00x](K\x01K\x02e\x8f(K\x01\x90(K\x02\x91}q\x05K\x01K\x02sh\x05t";
    let memo = b"]\x94h\x00a2\x85(N0N1\x95\x00\x00\x00\x00\x00\x00\x00\x00(K\x01K\x02d\x86\x86";
    let mut all = vec![
        piece::whole(&piece::dictionary(&[("state_dict", piece::dictionary(&[("a", tensor)]))])),
        piece::whole(&piece::dictionary(&[("hyper_parameters", namespace.concat())])),
        piece::whole(&piece::dictionary(&[("state_dict", piece::dictionary(&[("b", typed.to_vec())]))])),
        piece::whole(plain),
        piece::whole(memo),
    ];
    let foreign: [&[u8]; 10] = [
        b"cos\nsystem\n\x8c\x02id\x85R",
        b"\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R",
        b"(\x8c\x02idios\nsystem\n",
        b"(ccollections\nOrderedDict\no",
        b"ccollections\nOrderedDict\n)}\x92",
        b"]}b",
        b"\x84\x07\x00\x00\x01",
        b"Pevil\n",
        b"\x8c\x04evilQ",
        b"\x97",
    ];
    all.extend(foreign.map(piece::whole));
    all
}

/// The pickle of an archive.
pub fn pickle_of(bytes: &[u8]) -> Vec<u8> {
    let entries = archives::entries(bytes).unwrap_or_default();
    entries.into_iter().find(|(name, _)| name.ends_with("data.pkl")).map(|(_, pickle)| pickle).unwrap_or_default()
}
