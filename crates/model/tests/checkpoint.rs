//! Reading PyTorch checkpoints: what is read is what PyTorch wrote, and what is not data is refused by name.
#![allow(clippy::unwrap_used)]

mod checkpoints;

use std::collections::BTreeMap;

use checkpoints::{Tensor, archive, floats, golden, lightning, open, piece, zip};
use mambo_model::checkpoint::{Checkpoint, CheckpointError, Plain, ssm_ttm};
use mambo_model::weights::Weights;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

#[derive(serde::Deserialize)]
struct Reference {
    sha256: BTreeMap<String, String>,
    shapes: BTreeMap<String, Vec<usize>>,
}

fn message(error: &CheckpointError) -> String {
    let message = error.to_string();
    assert!(message.contains("some/file.ckpt"), "{message}");
    message
}

#[test]
fn every_tensor_of_the_language_model_is_read_bit_by_bit() {
    let mut reports = Vec::new();
    let model = ssm_ttm::read(&golden("ssm_ttm.ckpt"), &mut |done, total| reports.push((done, total))).unwrap();
    let expected = ssm_ttm::Sizes {
        codebooks: 2,
        cardinality: 16,
        d_model: 32,
        layers: 2,
        d_state: 16,
        inner: 128,
        feed_forward: 64,
        text_width: 24,
    };
    assert_eq!((model.sizes, model.step), (expected, Some(21_500)));
    let weights = Weights::open(&golden("ssm_ttm.safetensors")).unwrap();
    let reference: Reference = serde_json::from_str(weights.metadata("reference").unwrap()).unwrap();
    assert_eq!(model.tensors.len(), reference.sha256.len());
    assert_eq!(model.tensors.len(), 4 + 2 * 2 + 2 * 14);
    for tensor in &model.tensors {
        assert_eq!(tensor.shape, reference.shapes[&tensor.name], "{}", tensor.name);
        let hash: String =
            Sha256::digest(floats(tensor.values.iter().copied())).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, reference.sha256[&tensor.name], "{}", tensor.name);
    }
    // Three of the text encoder; two moments and a step count of 20 tensors, and one of a callback.
    assert_eq!(model.left_out, ssm_ttm::LeftOut { text_encoder: 3, other_state: 0, elsewhere: 3 * 20 + 1 });
    let total = model.tensors.iter().map(|tensor| tensor.values.len() as u64).sum();
    assert_eq!((reports[0], *reports.last().unwrap()), ((0, total), (total, total)));
}

#[test]
fn a_listing_names_everything_and_reads_no_numbers() {
    let checkpoint = Checkpoint::open(&golden("ssm_ttm.ckpt")).unwrap();
    let tensors: BTreeMap<String, (String, Vec<usize>)> = checkpoint
        .tensors()
        .unwrap()
        .into_iter()
        .map(|(name, tensor)| (name, (tensor.element().to_string(), tensor.shape().to_vec())))
        .collect();
    let of = |name: &str| tensors.get(name).cloned();
    assert_eq!(of("state_dict.music_model.embedding.1.weight"), Some(("F32".into(), vec![17, 32])));
    assert_eq!(of("state_dict.text_encoder.encoder.final_layer_norm.weight"), Some(("BF16".into(), vec![24])));
    assert_eq!(of("optimizer_states.0.state.3.exp_avg_sq"), Some(("F32".into(), vec![32])));
    let plain: BTreeMap<String, Plain> = checkpoint.plain("hyper_parameters").unwrap().into_iter().collect();
    assert_eq!(plain["config.model.d_state"], Plain::Int(16));
    assert_eq!(plain["config.optimizer.betas.1"], Plain::Float(0.999));
    assert_eq!(plain["config.training.name"], Plain::Text("tiny".into()));
    assert_eq!(checkpoint.plain("rng").unwrap(), [("counts.a".to_owned(), Plain::Int(-1))]);
    assert_eq!(checkpoint.plain("epoch").unwrap(), [(String::new(), Plain::Int(50))]);
    assert_eq!(checkpoint.plain("nothing").unwrap(), []);
}

/// Pieces that refer to something other than data, and what the refusal must name.
fn foreign() -> Vec<(&'static [u8], &'static str)> {
    vec![
        (b"cos\nsystem\n\x8c\x09touch own\x85R", "`os.system`"),
        (b"cbuiltins\neval\n\x8c\x011\x85R", "`builtins.eval`"),
        (b"c__builtin__\nexec\n\x8c\x011\x85R", "`__builtin__.exec`"),
        (b"cbuiltins\ngetattr\n", "`builtins.getattr`"),
        (b"\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R", "`posix.system`"),
        (b"\x8c\x02nt\x94\x8c\x06system\x94\x93", "`nt.system`"),
        (b"\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R", "`builtins.eval`"),
        (b"c__builtin__\n__import__\n\x8c\x02os\x85R", "`__builtin__.__import__`"),
        (b"coperator\nattrgetter\n\x8c\x06system\x85R", "`operator.attrgetter`"),
        (b"cimportlib\nimport_module\n\x8c\x02os\x85R", "`importlib.import_module`"),
        (b"ccopyreg\n_reconstructor\n", "`copyreg._reconstructor`"),
        (b"ccopyreg\nadd_extension\n\x8c\x02os\x8c\x06systemK\x07\x87R\x82\x07", "`copyreg.add_extension`"),
        // State goes to a method of the class that the pickle names.
        (b"cevil\nObject\n)\x81}\x8c\x0c__setstate__cos\nsystem\nsb", "`evil.Object`"),
        (b"ccollections\nOrderedDict\n)R}\x8c\x0c__setstate__cos\nsystem\nsb", "`os.system`"),
        (b"ccollections\nOrderedDict\n}b", "state for `collections.OrderedDict` (BUILD)"),
        (b"(\x8c\x02idios\nsystem\n", "`os.system` (INST)"),
        (b"(ccollections\nOrderedDict\no", "an object of `collections.OrderedDict` (OBJ)"),
        (b"(cos\nsystem\n\x8c\x02ido", "`os.system`"),
        (b"\x82\x07", "`extension 7` (EXT1)"),
        (b"\x83\x07\x01", "`extension 263` (EXT2)"),
        (b"\x84\x07\x00\x00\x01", "`extension 16777223` (EXT4)"),
        (b"]}b", "state for a list (BUILD)"),
        (b"}}b", "state for a dictionary (BUILD)"),
        (b"ctorch\nFloatStorage\n}b", "state for `torch.FloatStorage` (BUILD)"),
        (b"ctorch\ndevice\n\x8c\x03cpu\x85R}b", "state for plain data (BUILD)"),
        // Put into the memo, taken off the stack, brought back among allowed things.
        (b"cos\nsystem\nq\x090ccollections\nOrderedDict\n)R0h\x09\x8c\x02id\x85R", "`os.system`"),
        (b"ctorch\nFloatStorage\n)R", "`torch.FloatStorage` as a function (REDUCE)"),
        (b"cbuiltins\nlist\n]\x85R", "`builtins.list` as a function (REDUCE)"),
        (b"\x8c\x09os.system\x8c\x02id\x85R", "a text as a function (REDUCE)"),
        (b"ctorch.storage\n_load_from_bytes\nC\x01x\x85R", "`torch.storage._load_from_bytes`"),
        (b"ctorch\nload\n\x8c\x01x\x85R", "`torch.load`"),
        (b"ctorch.hub\nload\n\x8c\x01x\x85R", "`torch.hub.load`"),
        // A name with dots is looked up in steps by Python.
        (
            b"\x8c\x0ctorch._utils\x8c\x1e_rebuild_tensor_v2.__globals__\x93",
            "`torch._utils._rebuild_tensor_v2.__globals__`",
        ),
        (b"csubprocess\nPopen\n\x8c\x02id\x85\x81", "`subprocess.Popen`"),
        (b"\x8c\nsubprocess\x8c\x05Popen\x93\x8c\x02id\x85}\x92", "`subprocess.Popen`"),
        (b"ctorch\nSize\n)\x81", "an object of `torch.Size` (NEWOBJ)"),
        (b"ccollections\nOrderedDict\nN\x85\x81", "an object of `collections.OrderedDict` (NEWOBJ)"),
        (b"ccollections\nOrderedDict\n)}\x92", "an object of `collections.OrderedDict` (NEWOBJ_EX)"),
        (b"ccollections\ndefaultdict\ncos\nsystem\n\x85R", "`os.system`"),
        (b"ctorch._utils\n_rebuild_parameter\n(N\x89cos\nsystem\ntR", "`os.system`"),
        (b"Pevil\n", "the outside object `evil` (PERSID)"),
        (b"\x8c\x04evilQ", "a text as an outside object (BINPERSID)"),
        (b"(\x8c\x07storageccollections\nOrderedDict\n\x8c\x010\x8c\x03cpuK\x01tQ", "no storage (BINPERSID)"),
        (b"(\x8c\x07storagecos\nsystem\n\x8c\x010\x8c\x03cpuK\x01tQ", "`os.system`"),
        (b"\x97", "a buffer outside the file"),
        (b"cnumpy.core.multiarray\n_reconstruct\n", "`numpy.core.multiarray._reconstruct`"),
        // What is shown of a name does not reach the terminal as it is.
        (b"cos\x1b[2J\nsystem\n", "`os\\u{1b}[2J.system`"),
    ]
}

#[test]
fn what_is_not_data_is_refused_by_name_wherever_it_stands() {
    for (piece, what) in foreign() {
        let nested = piece::dictionary(&[("state", [b"}K\x00", piece, b"s"].concat())]);
        let late = [("optimizer_states", [b"]".to_vec(), nested, b"a".to_vec()].concat())];
        let tensor = [("music_model.a", Tensor::plain("0", &[1]))];
        let second =
            zip(&[("archive/data.pkl", &piece::whole(b"}")), ("archive/more/constants.pkl", &piece::whole(piece))]);
        let files = [
            (archive(&piece::whole(piece)), "archive/data.pkl"),
            (lightning(&tensor, &[("0", floats([1.0]))], &late), "archive/data.pkl"),
            (second, "archive/more/constants.pkl"),
        ];
        for (bytes, entry) in files {
            let error = open(bytes).unwrap_err();
            assert!(matches!(error, CheckpointError::Refused { .. }), "{what}: {error}");
            let message = message(&error);
            for part in [what, entry, "refers to", "nothing was run"] {
                assert!(message.contains(part), "{message} should mention {part}");
            }
        }
    }
    assert!(!std::path::Path::new("own").exists());
}

/// Pickles that are no pickles, by what is said of them.
fn unsound_pickles() -> Vec<(Vec<u8>, &'static str)> {
    let whole = |piece: &[u8]| piece::whole(piece);
    vec![
        (b"".to_vec(), "breaks off"),
        (b"N.".to_vec(), "no pickle of protocol 2 to 5"),
        (b"\x80\x06N.".to_vec(), "no pickle of protocol 2 to 5"),
        (b"\x80\x02N".to_vec(), "breaks off"),
        (b"\x80\x02.".to_vec(), "empty stack"),
        (b"\x80\x02NN.".to_vec(), "left over"),
        (b"\x80\x02(N.".to_vec(), "left over"),
        (b"\x80\x02N.\x80\x02cos\nsystem\n)R.".to_vec(), "something follows its end"),
        (whole(b"I1\n"), "opcode 0x49"),
        (whole(b"(0t"), "mark that was not set"),
        (whole(b"N(\x85"), "empty stack"),
        (whole(b"N(R"), "empty stack"),
        (whole(b"(Nu"), "a key has no value"),
        (whole(b"Na"), "empty stack"),
        (whole(b")Na"), "appends to a tuple"),
        (whole(b"]NNs"), "sets entries of a list"),
        (whole(b"](N\x90"), "adds to a list"),
        (whole(b"h\x05"), "entry 5 of the memo"),
        (whole(b"\x8c\x02\xff\xfe"), "not UTF-8"),
        (whole(b"cos"), "a name has no end"),
        (whole(b"NN\x93"), "a name is not a text"),
        (whole(b"ccollections\nOrderedDict\nNR"), "no tuple"),
        (whole(b"ccollections\nOrderedDict\n(NNtR"), "2 arguments"),
        (whole(b"ctorch._utils\n_rebuild_tensor_v2\n)R"), "made of 0 values"),
        (whole(b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR"), "made of nothing"),
        (whole(b"ctorch._utils\n_rebuild_parameter\n)R"), "0 arguments"),
        (whole(&[0x95, 0xff, 0, 0, 0, 0, 0, 0, 0]), "a frame claims 255 bytes"),
    ]
}

#[test]
fn a_broken_pickle_is_named_with_the_place() {
    for (pickle, what) in unsound_pickles() {
        let error = open(archive(&pickle)).unwrap_err();
        assert!(matches!(error, CheckpointError::Pickle { .. }), "{pickle:x?}: {error}");
        assert!(message(&error).contains(what), "{pickle:x?}: {error}");
    }
}

#[test]
fn cycles_and_depth_are_only_data() {
    // A list that holds itself, and a dictionary under a key of itself.
    let circle = open(archive(&piece::whole(b"]q\x00h\x00a}q\x01\x8c\x01kh\x01s\x86"))).unwrap();
    assert_eq!(circle.tensors().unwrap(), []);
    // Thirty dictionaries, each twice in the next: two to the thirtieth, one tensor deep.
    let mut wide = Tensor::plain("0", &[1]).pickle();
    for _ in 0..30 {
        wide = [&b"}("[..], &piece::text("a"), &wide, b"q\x07", &piece::text("b"), b"h\x07u"].concat();
    }
    let laughs = lightning(&[("a", Tensor::plain("0", &[1]))], &[("0", floats([1.0]))], &[("more", wide)]);
    assert_eq!(open(laughs).unwrap().tensors().unwrap().len(), 2 + 1);
    // Half a million lists in one another: read, dropped, and refused only when its paths are asked for.
    let deep = [vec![b']'; 500_000], vec![b'a'; 499_999]].concat();
    let deep = open(archive(&piece::whole(&deep))).unwrap();
    assert!(matches!(deep.tensors(), Err(CheckpointError::Content { .. })));
    assert_eq!(
        open(archive(&piece::whole(&[vec![b'('; 400_000], vec![b't'; 400_000]].concat()))).unwrap().tensor_count(),
        0
    );
    let endless = open(archive(&piece::whole(&vec![b'N'; 2_000_000]))).unwrap_err();
    assert!(message(&endless).contains("opcodes"), "{endless}");
}

#[test]
fn a_tensor_outside_its_storage_is_refused() {
    let of = |offset: i64, shape: &[i64], strides: &[i64]| Tensor {
        offset,
        shape: shape.into(),
        strides: strides.into(),
        ..Tensor::plain("0", &[6])
    };
    let open = |tensor: Tensor| open(lightning(&[("a", tensor)], &[("0", floats([0.0; 6]))], &[]));
    let good =
        [of(0, &[6], &[1]), of(5, &[], &[]), of(1, &[2, 2], &[1, 3]), of(5, &[3, 1], &[0, 9]), of(9, &[0, 4], &[7, 7])];
    for tensor in good {
        open(tensor.clone()).unwrap_or_else(|error| panic!("{tensor:?}: {error}"));
    }
    let bad = [
        of(0, &[7], &[1]),
        of(1, &[6], &[1]),
        of(6, &[], &[]),
        of(0, &[2, 3], &[4, 1]),
        of(-1, &[2], &[1]),
        of(0, &[-2], &[1]),
        of(4, &[3], &[-1]),
        of(0, &[2, 3], &[3]),
        of(0, &[i64::MAX, 3], &[0, 0]),
        of(0, &[3], &[i64::MAX]),
        of(i64::MAX, &[2, 2], &[i64::MAX, i64::MAX]),
        of(0, &[1; 17], &[1; 17]),
    ];
    for tensor in bad {
        let error = open(tensor.clone()).unwrap_err();
        assert!(matches!(error, CheckpointError::Pickle { .. }), "{tensor:?}: {error}");
    }
    for count in [5, 7, -6, i64::MAX] {
        let error = open(Tensor { count, ..of(0, &[1], &[1]) }).unwrap_err();
        assert!(message(&error).contains("storage"), "{count}: {error}");
    }
    let error = open(Tensor { key: "1".into(), ..Tensor::plain("1", &[6]) }).unwrap_err();
    assert!(message(&error).contains("storage 1 claims 24 bytes, 0 are there"), "{error}");
    let error = open(Tensor { class: "UntypedStorage", ..Tensor::plain("0", &[24]) }).unwrap_err();
    assert!(message(&error).contains("no element type"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever the strides, each number is the one that its index names.
    #[test]
    fn strides_are_followed(
        dimensions in prop::collection::vec((1_i64..5, 0_i64..9), 0..4),
        offset in 0_i64..20,
        class in prop::sample::select(vec!["FloatStorage", "DoubleStorage", "HalfStorage", "BFloat16Storage"]),
    ) {
        // 0 to 255 are exact in all four types.
        let numbers: Vec<u8> = (0..=255).collect();
        let bytes: Vec<u8> = match class {
            "FloatStorage" => floats(numbers.iter().map(|&n| f32::from(n))),
            "DoubleStorage" => numbers.iter().flat_map(|&n| f64::from(n).to_le_bytes()).collect(),
            "HalfStorage" => numbers.iter().flat_map(|&n| half::f16::from_f32(n.into()).to_le_bytes()).collect(),
            _ => numbers.iter().flat_map(|&n| half::bf16::from_f32(n.into()).to_le_bytes()).collect(),
        };
        let (shape, strides): (Vec<i64>, Vec<i64>) = dimensions.into_iter().unzip();
        let mut expected = vec![offset];
        for (&size, &stride) in shape.iter().zip(&strides) {
            expected = expected.iter().flat_map(|&at| (0..size).map(move |i| at + i * stride)).collect();
        }
        let tensor = Tensor { class, key: "0".into(), count: 256, offset, shape, strides };
        let mut checkpoint = open(lightning(&[("a", tensor)], &[("0", bytes)], &[])).unwrap();
        let stored = checkpoint.state_dict().unwrap()["a"].clone();
        let values = checkpoint.read("a", &stored).unwrap();
        prop_assert_eq!(values, expected.iter().map(|&n| n as f32).collect::<Vec<_>>());
    }
}

#[test]
fn the_spelling_of_newer_protocols_is_read_too() {
    let name = |name: &str| [&[0x8c, name.len() as u8], name.as_bytes(), b"\x94"].concat();
    let global = |module: &str, of: &str| [name(module), name(of), b"\x93\x94".to_vec()].concat();
    // A typed tensor of an untyped storage, in a trained parameter, in an AttributeDict, in protocol 4.
    let storage = [
        b"(".to_vec(),
        name("storage"),
        global("torch.storage", "UntypedStorage"),
        name("0"),
        name("cuda:0"),
        b"K\x08tQ".to_vec(),
    ]
    .concat();
    let tensor = [
        global("torch._utils", "_rebuild_tensor_v3"),
        b"(".to_vec(),
        storage,
        b"K\x00K\x02K\x02\x86K\x01K\x02\x86\x89".to_vec(),
        global("collections", "OrderedDict"),
        b")R".to_vec(),
        global("torch", "bfloat16"),
        b"tR".to_vec(),
    ]
    .concat();
    let parameter = [global("torch._utils", "_rebuild_parameter"), tensor, b"\x88}\x87R".to_vec()].concat();
    let state = [
        global("lightning.fabric.utilities.data", "AttributeDict"),
        b")\x81\x94".to_vec(),
        name("inside"),
        parameter,
        b"s".to_vec(),
    ]
    .concat();
    let body = [b"}".to_vec(), name("state_dict"), state, b"s.".to_vec()].concat();
    let pickle = [b"\x80\x04\x95".to_vec(), (body.len() as u64).to_le_bytes().to_vec(), body].concat();
    let numbers: Vec<u8> = (0_u8..4).flat_map(|n| half::bf16::from_f32(n.into()).to_le_bytes()).collect();
    let mut checkpoint = open(zip(&[("x/data.pkl", &pickle), ("x/data/0", &numbers)])).unwrap();
    let stored = checkpoint.state_dict().unwrap()["inside"].clone();
    assert_eq!(checkpoint.read("inside", &stored).unwrap(), [0.0, 2.0, 1.0, 3.0]);
}

#[test]
fn attributes_count_where_they_are_all_there_is() {
    let namespace = |class: &str| {
        let object = [b"c", class.as_bytes(), b"\n)\x81"].concat();
        [object, piece::dictionary(&[("a", piece::int(7))]), b"b".to_vec()].concat()
    };
    let of = |class: &str| {
        let more = [("hyper_parameters", namespace(class))];
        open(lightning(&[("a", Tensor::plain("0", &[1]))], &[("0", floats([1.0]))], &more)).unwrap()
    };
    assert_eq!(of("argparse\nNamespace").plain("hyper_parameters").unwrap(), [("a".to_owned(), Plain::Int(7))]);
    assert_eq!(of("collections\nOrderedDict").plain("hyper_parameters").unwrap(), []);
}

#[test]
fn numbers_that_are_no_weights_are_refused() {
    let read = |class: &'static str, bytes: Vec<u8>| {
        let tensor = Tensor { class, ..Tensor::plain("0", &[1]) };
        let mut checkpoint = open(lightning(&[("a", tensor)], &[("0", bytes)], &[])).unwrap();
        let stored = checkpoint.state_dict().unwrap()["a"].clone();
        message(&checkpoint.read("a", &stored).unwrap_err())
    };
    assert!(read("LongStorage", vec![0; 8]).contains("holds I64"));
    assert!(read("FloatStorage", floats([f32::NAN])).contains("not finite"));
    let repeated = Tensor { shape: vec![1 << 40, 1 << 23], strides: vec![0, 0], ..Tensor::plain("0", &[1]) };
    let mut checkpoint = open(lightning(&[("a", repeated)], &[("0", floats([1.0]))], &[])).unwrap();
    let stored = checkpoint.state_dict().unwrap()["a"].clone();
    assert!(message(&checkpoint.read("a", &stored).unwrap_err()).contains("a repeats few numbers 9223372036854775808"));
}
