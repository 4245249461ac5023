//! A model folder that makes music by itself: text encoder, language model, codec, and the one path through them.
//!
//! Text -> frames (on a thread of its own) -> codec stream -> master -> fade-out. Nothing here grows with the length of the
//! clip, and samples come out while later ones are still being made.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use mambo_audio::master::Master;

use crate::codec::{self, CodecError, DecodeStream, StreamCodec};
use crate::composer::{Composer, OtherTextEncoder, PromptedLm};
use crate::diffusion::{REFINER_FOLDER, Refiner, RefinerError, RefinerSampling, RefinerStream};
use crate::generate::{LanguageModel, LmFolderError};
use crate::musicgen::{MusicGen, MusicGenError};
use crate::published::model_type;
use crate::sampler::{Sampling, SamplingError};
use crate::text::{self, TextError};
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
    /// A MusicGen.
    #[error(transparent)]
    MusicGen(#[from] MusicGenError),
    /// A MusicGen with parts of others.
    #[error("{path}: a MusicGen has its codec and text encoder in it; leave --codec and --text out")]
    Parts {
        /// Folder.
        path: PathBuf,
    },
    /// The text encoder is not the language model's.
    #[error("{path}: {source}")]
    OtherText {
        /// Folder of the text encoder.
        path: PathBuf,
        /// What differs.
        source: OtherTextEncoder,
    },
    /// The second stage.
    #[error(transparent)]
    Refiner(#[from] RefinerError),
    /// The second stage was made for other parts.
    #[error("{path}: the second stage was trained for {expected}, this folder has {found}")]
    OtherRefiner {
        /// Folder of the second stage.
        path: PathBuf,
        /// Codec and text states of the second stage.
        expected: String,
        /// Those of the folder.
        found: String,
    },
    /// A setting of the second stage.
    #[error("second stage: {0}")]
    Refining(&'static str),
    /// The language model speaks another codec's tokens.
    #[error("{path}: the language model was trained on the tokens of {expected}, this is the codec {found}")]
    Mismatch {
        /// Folder of the codec.
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
    composer: Box<dyn Composer>,
    codec: Box<dyn StreamCodec>,
    refiner: Option<Refiner>,
}

impl Bundle {
    /// Opens a folder with `lm.toml`, `lm.safetensors`, `codec/`, `text/` and, if it has a second stage, `refiner/`, or a
    /// MusicGen as Hugging Face has it.
    ///
    /// # Errors
    /// [`BundleError`], naming the file and what is wrong with it.
    pub fn open(folder: &Path) -> Result<Self, BundleError> {
        Self::open_with(folder, None, None)
    }

    /// The same with a codec or a text encoder from elsewhere. The parts load side by side.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn open_with(folder: &Path, codec: Option<&Path>, text: Option<&Path>) -> Result<Self, BundleError> {
        if !folder.is_dir() {
            return Err(BundleError::Missing { path: folder.to_owned() });
        }
        if model_type(folder).as_deref() == Some("musicgen") {
            if codec.is_some() || text.is_some() {
                return Err(BundleError::Parts { path: folder.to_owned() });
            }
            let (composer, codec) = MusicGen::load(folder)?;
            return Ok(Self::new(Box::new(composer), Box::new(codec)));
        }
        let codec_path = codec.map_or_else(|| folder.join("codec"), Path::to_owned);
        let text_path = text.map_or_else(|| folder.join("text"), Path::to_owned);
        let (text, (codec, language)) = rayon::join(
            || text::open(&text_path),
            || rayon::join(|| codec::open(&codec_path), || LanguageModel::open(folder)),
        );
        // The language model first: without one the folder is none of ours.
        let (language, codec, text) = (language?, codec?, text?);
        let (expected, found) = (&language.file.codec, codec.spec());
        if expected.name != found.name
            || expected.hop != found.hop
            || expected.cardinality != found.cardinality
            || expected.levels > found.levels
        {
            let (expected, found) = (Box::new(expected.clone()), Box::new(found.clone()));
            return Err(BundleError::Mismatch { path: codec_path, expected, found });
        }
        let text_width = text.width();
        let composer =
            PromptedLm::new(language, text).map_err(|source| BundleError::OtherText { path: text_path, source })?;
        let mut bundle = Self::new(Box::new(composer), codec);
        let path = folder.join(REFINER_FOLDER);
        if path.is_dir() {
            let refiner = Refiner::open(&path)?;
            let config = refiner.config();
            let parts = |codec: &CodecSpec, width: usize| format!("the codec {codec} and text states of width {width}");
            let found = bundle.codec.spec();
            if bundle.codec.refinable().is_none() || config.codec != *found || config.text_width != text_width {
                let (expected, found) = (parts(&config.codec, config.text_width), parts(found, text_width));
                return Err(BundleError::OtherRefiner { path, expected, found });
            }
            bundle.refiner = Some(refiner);
        }
        Ok(bundle)
    }

    /// From parts in memory.
    pub fn new(composer: Box<dyn Composer>, codec: Box<dyn StreamCodec>) -> Self {
        Self { composer, codec, refiner: None }
    }

    /// Leaves the second stage out: the codec decodes what the language model wrote.
    pub fn without_refiner(self) -> Self {
        Self { refiner: None, ..self }
    }

    /// Draws detail with other settings; without a second stage they change nothing.
    ///
    /// # Errors
    /// [`BundleError::Refining`] for a setting out of range.
    pub fn with_refining(self, sampling: RefinerSampling) -> Result<Self, BundleError> {
        let refiner = match self.refiner {
            Some(refiner) => Some(refiner.with_sampling(sampling).map_err(BundleError::Refining)?),
            None => None,
        };
        Ok(Self { refiner, ..self })
    }

    /// The second stage, if there is one.
    pub fn refiner(&self) -> Option<&Refiner> {
        self.refiner.as_ref()
    }

    /// A running decoder of what the composer writes, through the second stage if there is one, for a text that was read as
    /// `text` `[tokens, text_width]` and is played at `tempo` beats a minute.
    pub fn decoder(&self, text: Option<Vec<f32>>, tempo: Option<f32>, seed: u64) -> Box<dyn DecodeStream + '_> {
        let levels = self.composer.tokens().levels;
        match (&self.refiner, self.codec.refinable()) {
            (Some(refiner), Some(codec)) => Box::new(RefinerStream::new(refiner, codec, levels, text, tempo, seed)),
            _ => self.codec.decoder(levels, seed),
        }
    }

    /// What writes the codes.
    pub fn composer(&self) -> &dyn Composer {
        self.composer.as_ref()
    }

    /// The codec.
    pub fn codec(&self) -> &dyn StreamCodec {
        self.codec.as_ref()
    }

    /// Sample rate of what it makes, in Hz.
    pub fn sample_rate(&self) -> u32 {
        self.codec.spec().sample_rate
    }

    /// Starts a clip: an iterator of blocks of mono samples.
    pub fn clip(&self, request: &Request) -> Result<Clip<'_>, BundleError> {
        let composition = self.composer.compose(&request.prompt, &request.sampling, request.seed)?;
        let (tempo, frames_of_piece) = (composition.tempo, composition.frames);
        let frames = self.codec.spec().frames_for(request.seconds);
        let stream = self.decoder(composition.text, tempo, request.seed);
        let opening = stream.opening();
        let (sender, receiver) = sync_channel(AHEAD);
        let (go_on, wait) = sync_channel(1);
        std::thread::spawn(move || {
            for (n, frame) in frames_of_piece.take(frames).enumerate() {
                // The first sound has the processor to itself; an error means that the clip is gone.
                if (n == opening && wait.recv().is_err()) || sender.send(frame).is_err() {
                    break;
                }
            }
        });
        let rate = f64::from(self.sample_rate());
        let samples = (request.seconds * rate).round().max(1.0) as usize;
        Ok(Clip {
            frames: receiver,
            stream: Some(stream),
            opening,
            go_on,
            master: Some(Master::new(self.sample_rate(), request.even)),
            tempo,
            total: samples,
            left: samples,
            made: 0,
            fade: ((request.fade * rate) as usize).min(samples / 4),
            stopped: false,
        })
    }
}

/// A clip being made.
pub struct Clip<'a> {
    frames: Receiver<Vec<u16>>,
    stream: Option<Box<dyn DecodeStream + 'a>>,
    /// Frames that the decoder opens with; beyond them the composer waits for a word.
    opening: usize,
    go_on: SyncSender<()>,
    master: Option<Master>,
    tempo: Option<f32>,
    total: usize,
    /// Samples still to be given out.
    left: usize,
    made: usize,
    /// Samples of the fade-out at the end.
    fade: usize,
    stopped: bool,
}

impl Clip<'_> {
    /// Ends the clip with what has been heard of it so far, and what is on its way, faded out.
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

    /// What is given out of some samples: no more than are left, faded where the clip ends.
    fn release(&mut self, mut samples: Vec<f32>) -> Option<Vec<f32>> {
        samples.truncate(self.left);
        for (n, sample) in samples.iter_mut().enumerate() {
            // Counted from the end, so that the fade is the same however the samples come.
            let left = self.left - n;
            if left <= self.fade {
                let angle = (self.fade - left + 1) as f32 / self.fade as f32 * std::f32::consts::FRAC_PI_2;
                *sample *= angle.cos().powi(2);
            }
        }
        self.left -= samples.len();
        (!samples.is_empty()).then_some(samples)
    }
}

impl Iterator for Clip<'_> {
    type Item = Vec<f32>;

    fn next(&mut self) -> Option<Vec<f32>> {
        while !self.stopped
            && let (Some(stream), Some(master)) = (&mut self.stream, &mut self.master)
        {
            if self.made == self.opening {
                // Nobody listens if the piece is no longer than that.
                let _ = self.go_on.send(());
            }
            let Ok(frame) = self.frames.recv() else { break };
            self.made += 1;
            let samples = master.push(&stream.push(&frame));
            if let Some(block) = self.release(samples) {
                return Some(block);
            }
        }
        let (stream, mut master) = (self.stream.take()?, self.master.take()?);
        let mut rest = master.push(&stream.finish());
        rest.extend(master.finish());
        if self.stopped {
            self.left = self.left.min(rest.len());
            self.fade = self.fade.min(self.left);
        }
        self.release(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;
    use crate::codec::dac::Dac;
    use crate::composer::Composition;

    /// Writes the same codes for ever.
    struct Drone(CodecSpec);

    impl Composer for Drone {
        fn tokens(&self) -> CodecSpec {
            self.0.clone()
        }

        fn sampling(&self) -> Sampling {
            Sampling::default()
        }

        fn compose(&self, _prompt: &str, _sampling: &Sampling, _seed: u64) -> Result<Composition, SamplingError> {
            let levels = self.0.levels;
            let frames = (0u16..).map(move |n| vec![n % 7; levels]);
            Ok(Composition { tempo: None, text: None, frames: Box::new(frames) })
        }
    }

    #[test]
    fn a_clip_ends_faded_where_it_was_told_to_or_soon_after_it_is_stopped() {
        let dac = Dac::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dac")).unwrap();
        let bundle = Bundle::new(Box::new(Drone(dac.spec().clone())), Box::new(dac));
        let sampling = Sampling::default();
        let request = Request { prompt: String::new(), seconds: 1.0, seed: 1, sampling, fade: 0.2, even: false };
        let unfaded: Vec<f32> = bundle.clip(&Request { fade: 0.0, ..request.clone() }).unwrap().flatten().collect();
        let whole: Vec<f32> = bundle.clip(&request).unwrap().flatten().collect();
        assert_eq!((whole.len(), unfaded.len()), (44_100, 44_100));
        let fade = 8_820;
        assert_eq!(whole[..44_100 - fade], unfaded[..44_100 - fade]);
        let power = |samples: &[f32]| samples.iter().map(|v| v * v).sum::<f32>();
        assert!(power(&whole[44_000..]) < 0.01 * power(&unfaded[44_000..]) && power(&unfaded[44_000..]) > 0.0);
        // Stopped: what was under way still comes.
        let mut clip = bundle.clip(&request).unwrap();
        let mut stopped = clip.next().unwrap();
        let heard = stopped.len();
        clip.stop();
        stopped.extend(clip.by_ref().flatten());
        assert!(heard < stopped.len() && stopped.len() < 30_000, "{heard} of {}", stopped.len());
        assert_eq!(stopped[..heard], unfaded[..heard]);
        assert!(stopped.last().unwrap().abs() < 1e-6);
        assert!(clip.next().is_none());
    }
}
