//! The published SSM-TTM checkpoint (arXiv 2601.14786): a Prefix SiMBA over the codes of DAC, in a Lightning file.
//!
//! Its `state_dict` holds the language model under `music_model.` and a whole text encoder besides. All sizes follow from
//! the shapes of the tensors; every tensor that those sizes ask for must be there, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use super::{Checkpoint, CheckpointError, Plain, StoredTensor, shown};
use crate::backbone::{BackboneKind, ChannelMixer, SsmKind};
use crate::generate::LmFile;
use crate::lm::{Head, LmConfig, LmConfigError, Positions};
use crate::parameters::Parameters;
use crate::sampler::Sampling;
use crate::tokens::CodecSpec;
use crate::weights::{WeightsError, require_none};

/// What stands before the names of the language model.
const PREFIX: &str = "music_model.";
/// What stands before the names of the text encoder.
const TEXT_PREFIX: &str = "text_encoder.";
/// Channels per head of the Mamba-2 layers. The paper's code leaves it at the default of `mamba_ssm`.
pub const HEAD_DIM: usize = 64;
/// Taps of the convolution, left at the default too.
const TAPS: usize = 4;

/// Frames of a training clip: 30 seconds of MP3 with the encoder's padding.
const TRAINED_FRAMES: usize = 2588;

/// Sizes of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// Codebooks modelled (kappa).
    pub codebooks: usize,
    /// Codes per codebook; tables have one row more, for the special token.
    pub cardinality: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Blocks.
    pub layers: usize,
    /// State entries per channel.
    pub d_state: usize,
    /// Inner width of the Mamba-2 layers.
    pub inner: usize,
    /// Inner width of the feed-forward layers.
    pub feed_forward: usize,
    /// Width of the text encoder's states.
    pub text_width: usize,
}

/// A tensor of the language model, read.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Name, without the prefix.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
}

/// Tensors of the file that are not part of the language model.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    /// Those of the text encoder.
    pub text_encoder: usize,
    /// Others of the state dictionary.
    pub other_state: usize,
    /// Those elsewhere: moments of the optimiser, callbacks.
    pub elsewhere: usize,
}

/// The language model of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct SsmTtm {
    /// Sizes.
    pub sizes: Sizes,
    /// All tensors of the network, sorted by name.
    pub tensors: Vec<NamedTensor>,
    /// Optimiser steps it was trained, if the file says so.
    pub step: Option<i64>,
    /// What was not taken.
    pub left_out: LeftOut,
}

impl SsmTtm {
    /// The model folder's description, and its weights as they are.
    ///
    /// # Errors
    /// [`LmConfigError`] for sizes beyond what a model can have.
    ///
    /// # Panics
    /// When the tensors are not those that the sizes ask for; [`read`] checks that.
    pub fn into_model(self) -> Result<(LmFile, Parameters), LmConfigError> {
        let Sizes { codebooks, cardinality, d_model, layers, d_state, inner, feed_forward, text_width } = self.sizes;
        let model = LmConfig {
            codebooks,
            // The published pattern has codebook k begin in column k + 1 because it counts the start column.
            delays: (0..codebooks).collect(),
            cardinality,
            d_model,
            layers,
            backbone: BackboneKind::PrefixSimba,
            ssm: SsmKind::Mamba2,
            d_state,
            head_dim: HEAD_DIM,
            groups: 1,
            expand: inner / d_model,
            chunk: 64,
            attention_head_dim: 64,
            channel_mixer: ChannelMixer::FeedForward,
            ff_multiple: feed_forward / d_model,
            fft_blocks: 4,
            positions: Positions::Sinusoidal,
            final_norm: false,
            text_width,
            null_tokens: 0,
            head: Head::Published,
            codec_width: 0,
            same_again: false,
            beat_clock: false,
            echo_beats: Vec::new(),
            text_in_every_frame: false,
        };
        let mut parameters = model.blank()?;
        let mut values: BTreeMap<String, Vec<f32>> =
            self.tensors.into_iter().map(|tensor| (tensor.name, tensor.values)).collect();
        for parameter in parameters.list_mut() {
            parameter.values = values.remove(&parameter.name).expect("a tensor for every parameter");
        }
        assert!(values.is_empty(), "tensors without a parameter: {:?}", values.keys());
        // DAC at 44.1 kHz (arXiv 2306.06546), of whose nine codebooks the model speaks the first.
        let codec = CodecSpec { name: "dac".into(), sample_rate: 44_100, hop: 512, levels: 9, cardinality };
        let frames = |seconds: f64| codec.frames_for(seconds);
        // Temperature, top-k and guidance are those of the published scripts, the window is the trained length. What
        // stays after a turn is as long as in Mambo's own models.
        let sampling = Sampling {
            temperature: 1.2,
            top_k: 250,
            top_p: 1.0,
            guidance: 3.0,
            window: TRAINED_FRAMES,
            opening: frames(5.0),
            overlap: frames(1.0),
            ..Sampling::default()
        };
        Ok((LmFile { model, codec, sampling }, parameters))
    }
}

/// Reads the language model of the checkpoint at `path`. `report` is told how many numbers have been read, of how many.
///
/// # Errors
/// All of [`CheckpointError`].
pub fn read(path: &Path, report: &mut dyn FnMut(u64, u64)) -> Result<SsmTtm, CheckpointError> {
    let checkpoint: Checkpoint<File> = Checkpoint::open(path)?;
    read_from(checkpoint, report)
}

/// The same from a checkpoint that is open.
///
/// # Errors
/// [`CheckpointError::Io`], [`CheckpointError::Content`] and [`CheckpointError::Tensor`].
pub fn read_from<R: Read + Seek>(
    mut checkpoint: Checkpoint<R>,
    report: &mut dyn FnMut(u64, u64),
) -> Result<SsmTtm, CheckpointError> {
    let shapes = Shapes::of(&checkpoint)?;
    let sizes = shapes.sizes()?;
    let mut expected = expected(&sizes);
    expected.sort();
    shapes.compare(&expected)?;
    check_hyperparameters(&checkpoint, &sizes)?;
    let left_out = shapes.left_out.clone();
    let wanted: Vec<StoredTensor> =
        expected.iter().filter_map(|(name, _)| shapes.music.get(name.as_str())).map(|&tensor| tensor.clone()).collect();
    let total = wanted.iter().fold(0_u64, |sum, tensor| sum.saturating_add(tensor.count() as u64));
    // As for one tensor, so for all of them together.
    if total > checkpoint.length() {
        return Err(
            checkpoint.content(format!("its tensors repeat few numbers: {total} in {} bytes", checkpoint.length()))
        );
    }
    let step = checkpoint.plain("global_step")?.into_iter().find_map(|(_, value)| match value {
        Plain::Int(step) => Some(step),
        _ => None,
    });
    let mut tensors = Vec::with_capacity(wanted.len());
    let mut done = 0;
    for ((name, shape), tensor) in expected.into_iter().zip(wanted) {
        report(done, total);
        let values = checkpoint.read(&format!("{PREFIX}{name}"), &tensor)?;
        done += values.len() as u64;
        tensors.push(NamedTensor { name, shape, values });
    }
    report(done, total);
    Ok(SsmTtm { sizes, tensors, step, left_out })
}

/// The tensors of the language model by name, without the prefix, before any is read.
struct Shapes<'a> {
    path: &'a Path,
    music: BTreeMap<&'a str, &'a StoredTensor>,
    left_out: LeftOut,
}

impl<'a> Shapes<'a> {
    fn of<R: Read + Seek>(checkpoint: &'a Checkpoint<R>) -> Result<Self, CheckpointError> {
        let mut music = BTreeMap::new();
        let (mut text_encoder, mut other_state) = (0, 0);
        // Two names may share a tensor, which the checkpoint then holds once.
        let mut distinct = BTreeSet::new();
        for (name, tensor) in checkpoint.state_dict()? {
            distinct.insert(std::ptr::from_ref(tensor));
            if let Some(name) = name.strip_prefix(PREFIX) {
                music.insert(name, tensor);
            } else if name.starts_with(TEXT_PREFIX) {
                text_encoder += 1;
            } else {
                other_state += 1;
            }
        }
        let elsewhere = checkpoint.tensor_count() - distinct.len();
        Ok(Self { path: checkpoint.path(), music, left_out: LeftOut { text_encoder, other_state, elsewhere } })
    }

    fn shape<const D: usize>(&self, name: &str) -> Result<[usize; D], CheckpointError> {
        let name_in_file = || format!("{PREFIX}{name}");
        let Some(tensor) = self.music.get(name) else {
            return Err(WeightsError::Missing { path: self.path.to_owned(), name: name_in_file() }.into());
        };
        tensor.shape().try_into().map_err(|_| {
            let found = tensor.shape();
            self.odd(format!("tensor {} has shape {found:?}, expected {D} dimensions", name_in_file()))
        })
    }

    fn odd(&self, reason: String) -> CheckpointError {
        CheckpointError::Content { path: self.path.to_owned(), reason: format!("{reason}: this is no SSM-TTM model") }
    }

    /// How many of `first`, `second`, ... are there.
    fn run(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&n| self.music.contains_key(name(n).as_str())).count()
    }

    fn sizes(&self) -> Result<Sizes, CheckpointError> {
        let [d_model, text_width] = self.shape("condition_linear.weight")?;
        let [table, _] = self.shape("embedding.0.weight")?;
        let [projected, _] = self.shape("backbone.0.mamba.mamba.in_proj.weight")?;
        let [channels] = self.shape("backbone.0.mamba.mamba.conv1d.bias")?;
        let [feed_forward, _] = self.shape("backbone.0.ff.feed_forward.0.weight")?;
        // The projection has a gate and a step size per head beside the channels of the convolution, which are the inner
        // ones and two states.
        let heads = projected.saturating_sub(channels) / (HEAD_DIM + 1);
        let inner = heads.saturating_mul(HEAD_DIM);
        let d_state = channels.saturating_sub(inner) / 2;
        if heads == 0 || d_state == 0 || inner + 2 * d_state != channels || channels + inner + heads != projected {
            return Err(self.odd(format!(
                "a projection to {projected} with {channels} channels is none of Mamba-2 with heads of {HEAD_DIM}"
            )));
        }
        let multiple = |width: usize| d_model > 0 && width > 0 && width.is_multiple_of(d_model);
        if !multiple(inner) || !multiple(feed_forward) || table < 2 || text_width == 0 {
            return Err(self.odd(format!(
                "width {d_model}, inner widths {inner} and {feed_forward}, a table of {table} rows, text of width {text_width}"
            )));
        }
        Ok(Sizes {
            codebooks: self.run(|k| format!("embedding.{k}.weight")),
            cardinality: table - 1,
            d_model,
            layers: self.run(|i| format!("backbone.{i}.mamba.norm.weight")),
            d_state,
            inner,
            feed_forward,
            text_width,
        })
    }

    /// All of `expected` with its shape, and nothing else.
    fn compare(&self, expected: &[(String, Vec<usize>)]) -> Result<(), CheckpointError> {
        let path = || self.path.to_owned();
        for (name, shape) in expected {
            let Some(tensor) = self.music.get(name.as_str()) else {
                return Err(WeightsError::Missing { path: path(), name: format!("{PREFIX}{name}") }.into());
            };
            if tensor.shape() != shape {
                let (name, found) = (format!("{PREFIX}{name}"), tensor.shape().to_vec());
                return Err(WeightsError::Shape { path: path(), name, found, expected: shape.clone() }.into());
            }
        }
        let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let unread: Vec<String> = self
            .music
            .keys()
            .filter(|name| !known.contains(**name))
            .map(|name| format!("{PREFIX}{}", shown(name)))
            .collect();
        Ok(require_none(self.path, unread.iter().map(String::as_str))?)
    }
}

/// Names and shapes of the network.
fn expected(sizes: &Sizes) -> Vec<(String, Vec<usize>)> {
    let &Sizes { codebooks, cardinality, d_model, layers, d_state, inner, feed_forward, text_width } = sizes;
    let (heads, channels) = (inner / HEAD_DIM, inner + 2 * d_state);
    let mut all = vec![
        ("condition_linear.weight".to_owned(), vec![d_model, text_width]),
        ("condition_linear.bias".to_owned(), vec![d_model]),
        ("condition_norm.weight".to_owned(), vec![d_model]),
        ("condition_norm.bias".to_owned(), vec![d_model]),
    ];
    for k in 0..codebooks {
        all.push((format!("embedding.{k}.weight"), vec![cardinality + 1, d_model]));
        all.push((format!("lm_head.{k}.weight"), vec![cardinality + 1, d_model]));
    }
    for i in 0..layers {
        let block: [(&str, &[usize]); 14] = [
            ("mamba.norm.weight", &[d_model]),
            ("mamba.mamba.in_proj.weight", &[inner + channels + heads, d_model]),
            ("mamba.mamba.conv1d.weight", &[channels, 1, TAPS]),
            ("mamba.mamba.conv1d.bias", &[channels]),
            ("mamba.mamba.dt_bias", &[heads]),
            ("mamba.mamba.A_log", &[heads]),
            ("mamba.mamba.D", &[heads]),
            ("mamba.mamba.norm.weight", &[inner]),
            ("mamba.mamba.out_proj.weight", &[d_model, inner]),
            ("ff.norm.weight", &[d_model]),
            ("ff.feed_forward.0.weight", &[feed_forward, d_model]),
            ("ff.feed_forward.0.bias", &[feed_forward]),
            ("ff.feed_forward.3.weight", &[d_model, feed_forward]),
            ("ff.feed_forward.3.bias", &[d_model]),
        ];
        all.extend(block.iter().map(|(name, shape)| (format!("backbone.{i}.{name}"), shape.to_vec())));
    }
    all
}

/// What the file says of itself must be what its tensors say; it need not say anything.
fn check_hyperparameters<R: Read + Seek>(checkpoint: &Checkpoint<R>, sizes: &Sizes) -> Result<(), CheckpointError> {
    let known = [
        ("layers", sizes.layers),
        ("vocab_size", sizes.cardinality + 1),
        ("codec_layer", sizes.codebooks),
        ("d_model", sizes.d_model),
        ("d_state", sizes.d_state),
    ];
    for (path, value) in checkpoint.plain("hyper_parameters")? {
        // The published code keeps them under `config.model`.
        let Some((key, size)) = known.iter().find(|(key, _)| path == format!("config.model.{key}")) else { continue };
        if value != Plain::Int(*size as i64) {
            return Err(checkpoint.content(format!("its hyper_parameters say {key} = {value}, its tensors {size}")));
        }
    }
    Ok(())
}
