//! A model folder that makes music by itself: text encoder, language model, codec, and the one path through them.
//!
//! Text -> states -> frames (on a thread of its own) -> codec stream -> master -> fade-out. Nothing here grows with
//! the length of the clip, and samples come out while later ones are still being made.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

use mambo_audio::master::Master;

use crate::codec::{self, CodecError, DecodeStream, StreamCodec};
use crate::generate::{LanguageModel, LmFolderError};
use crate::sampler::{Sampling, SamplingError};
use crate::text::TextError;
use crate::text::minilm::MiniLm;
use crate::tokens::CodecSpec;

/// Frames made ahead of the decoder.
const AHEAD: usize = 256;

/// Why a model folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// There is no such folder.
    #[error("{path}: no model folder; give one with --model, e.g. models/tiny of the Mambo repository")]
    Missing {
        /// Folder.
        path: PathBuf,
    },
    /// The language model.
    #[error(transparent)]
    Language(#[from] LmFolderError),
    /// The codec.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The text encoder.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The language model speaks another codec's tokens.
    #[error(
        "{path}: the language model was trained on the tokens of {expected:?}, the folder holds the codec {found:?}"
    )]
    Mismatch {
        /// Folder.
        path: PathBuf,
        /// Codec of the language model.
        expected: Box<CodecSpec>,
        /// Codec in the folder.
        found: Box<CodecSpec>,
    },
    /// A setting.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
}

/// What to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What it should sound like; empty for anything.
    pub prompt: String,
    /// Length in seconds.
    pub seconds: f64,
    /// Same seed, same sound.
    pub seed: u64,
    /// How codes are drawn.
    pub sampling: Sampling,
    /// Length of the fade-out in seconds.
    pub fade: f64,
    /// Draw the loudness together; see [`mambo_audio::leveller`].
    pub even: bool,
}

/// A model folder, opened.
pub struct Bundle {
    language: LanguageModel,
    codec: Box<dyn StreamCodec>,
    text: MiniLm,
}

impl Bundle {
    /// Opens a folder with `lm.toml`, `lm.safetensors`, `codec/` and `text/`. The parts load side by side.
    pub fn open(folder: &Path) -> Result<Self, BundleError> {
        if !folder.is_dir() {
            return Err(BundleError::Missing { path: folder.to_owned() });
        }
        let (text, (codec, language)) = rayon::join(
            || MiniLm::load(&folder.join("text")),
            || rayon::join(|| codec::open(&folder.join("codec")), || LanguageModel::open(folder)),
        );
        let (text, codec, language) = (text?, codec?, language?);
        let expected = &language.file.codec;
        let found = codec.spec();
        if expected.name != found.name
            || expected.hop != found.hop
            || expected.cardinality != found.cardinality
            || expected.levels > found.levels
        {
            return Err(BundleError::Mismatch {
                path: folder.to_owned(),
                expected: Box::new(expected.clone()),
                found: Box::new(found.clone()),
            });
        }
        Ok(Self { language, codec, text })
    }

    /// From parts in memory.
    pub fn new(language: LanguageModel, codec: Box<dyn StreamCodec>, text: MiniLm) -> Self {
        Self { language, codec, text }
    }

    /// The language model.
    pub fn language(&self) -> &LanguageModel {
        &self.language
    }

    /// The codec.
    pub fn codec(&self) -> &dyn StreamCodec {
        self.codec.as_ref()
    }

    /// The text encoder.
    pub fn text(&self) -> &MiniLm {
        &self.text
    }

    /// Sample rate of what it makes, in Hz.
    pub fn sample_rate(&self) -> u32 {
        self.codec.spec().sample_rate
    }

    /// Starts a clip: an iterator of blocks of mono samples.
    pub fn clip(&self, request: &Request) -> Result<Clip<'_>, BundleError> {
        let prompt = request.prompt.trim();
        let states = (!prompt.is_empty()).then(|| self.text.encode(&[prompt]).remove(0));
        let generator =
            self.language.generate(states.as_ref().map(|s| s.states.as_slice()), &request.sampling, request.seed)?;
        let tempo = generator.tempo();
        let frames = self.codec.spec().frames_for(request.seconds);
        let (sender, receiver) = sync_channel(AHEAD);
        std::thread::spawn(move || {
            for frame in generator.take(frames) {
                if sender.send(frame).is_err() {
                    break;
                }
            }
        });
        let rate = f64::from(self.sample_rate());
        let samples = (request.seconds * rate).round().max(1.0) as usize;
        Ok(Clip {
            frames: receiver,
            stream: Some(self.codec.decoder(self.language.file.model.codebooks, request.seed)),
            master: Some(Master::new(self.sample_rate(), request.even)),
            tempo,
            total: samples,
            left: samples,
            made: 0,
            held: Vec::new(),
            fade: ((request.fade * rate) as usize).min(samples / 4),
            stopped: false,
        })
    }
}

/// A clip being made.
pub struct Clip<'a> {
    frames: Receiver<Vec<u16>>,
    stream: Option<Box<dyn DecodeStream + 'a>>,
    master: Option<Master>,
    tempo: Option<f32>,
    total: usize,
    left: usize,
    made: usize,
    /// The last samples, kept back because the fade-out may begin with them.
    held: Vec<f32>,
    fade: usize,
    stopped: bool,
}

impl Clip<'_> {
    /// Ends the clip with what has been made so far, faded out.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Beats a minute that it is played to; `None` without a beat or for a model without a clock.
    pub fn tempo(&self) -> Option<f32> {
        self.tempo
    }

    /// Samples of the whole clip.
    pub fn samples(&self) -> usize {
        self.total
    }

    /// Frames made so far.
    pub fn frames_made(&self) -> usize {
        self.made
    }

    fn take(&mut self, samples: Vec<f32>) {
        if let Some(master) = &mut self.master {
            self.held.extend(master.push(&samples));
        }
    }

    /// What can be given out while `keep` samples stay back.
    fn release(&mut self, keep: usize) -> Option<Vec<f32>> {
        let count = self.held.len().saturating_sub(keep).min(self.left);
        if count == 0 {
            return None;
        }
        self.left -= count;
        Some(self.held.drain(..count).collect())
    }
}

impl Iterator for Clip<'_> {
    type Item = Vec<f32>;

    fn next(&mut self) -> Option<Vec<f32>> {
        while !self.stopped
            && let Some(stream) = &mut self.stream
        {
            let Ok(frame) = self.frames.recv() else { break };
            self.made += 1;
            let samples = stream.push(&frame);
            self.take(samples);
            if let Some(block) = self.release(self.fade) {
                return Some(block);
            }
        }
        if let Some(stream) = self.stream.take() {
            let rest = stream.finish();
            self.take(rest);
            if let Some(master) = self.master.take() {
                self.held.extend(master.finish());
            }
            self.held.truncate(self.left);
            let from = self.held.len().saturating_sub(self.fade);
            let length = self.held.len() - from;
            for (n, sample) in self.held[from..].iter_mut().enumerate() {
                let angle = (n + 1) as f32 / length as f32 * std::f32::consts::FRAC_PI_2;
                *sample *= angle.cos().powi(2);
            }
            return self.release(0);
        }
        None
    }
}
