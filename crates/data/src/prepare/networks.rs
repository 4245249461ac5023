//! The networks that `mambo prepare` uses: a codec, musicnn, a text encoder.

use super::{PrepareOptions, PrepareSummary};
use super::{Stages, TagStage, TextStage, prepare};
use crate::error::DataError;
use crate::progress::Report;
use crate::shard::TextStates;
use half::f16;
use mambo_model::codec::{self, StreamCodec};
use mambo_model::listen::musicnn::Musicnn;
use mambo_model::text::{self, TextEncoder};
use std::path::Path;

/// The networks, opened.
pub struct Networks {
    codec: Box<dyn StreamCodec>,
    codec_hash: String,
    tagger: Option<(Musicnn, String)>,
    text: Box<dyn TextEncoder>,
}

impl Networks {
    /// Opens a codec folder, a tagger file (optional) and a text encoder folder.
    ///
    /// # Errors
    /// One of them cannot be opened; the message says which and why.
    pub fn open(codec: &Path, tagger: Option<&Path>, text: &Path) -> Result<Self, DataError> {
        let fail = |stage, path: &Path, message: String| DataError::Stage {
            stage,
            subject: path.display().to_string(),
            message,
        };
        let opened = codec::open(codec).map_err(|error| fail("codec", codec, error.to_string()))?;
        let tagger = match tagger {
            None => None,
            Some(path) => {
                let network = Musicnn::load(path).map_err(|error| fail("tagger", path, error.to_string()))?;
                Some((network, crate::fetch::sha256_of(path)?))
            }
        };
        let encoder = text::open(text).map_err(|error| fail("text encoder", text, error.to_string()))?;
        Ok(Self { codec_hash: codec::fingerprint(opened.as_ref()), codec: opened, tagger, text: encoder })
    }

    /// Hash of what the codec's tokens mean, as it is written into shards.
    #[must_use]
    pub fn codec_hash(&self) -> &str {
        &self.codec_hash
    }

    /// [`prepare`] with these networks.
    ///
    /// # Errors
    /// As [`prepare`].
    pub fn prepare(&self, options: &PrepareOptions, report: &mut Report<'_>) -> Result<PrepareSummary, DataError> {
        let tag = |sound: &[f32]| self.tags(sound);
        let text = |texts: &[&str]| Ok(self.states(texts));
        let stages = Stages {
            codec: self.codec.as_ref(),
            codec_hash: self.codec_hash.clone(),
            tagger: self.tagger.is_some().then_some(&tag as &TagStage<'_>),
            tagger_hash: self.tagger.as_ref().map(|(_, hash)| hash.clone()).unwrap_or_default(),
            text: &text as &TextStage<'_>,
            text_name: self.text.name().into(),
            text_hash: self.text.identity().to_owned(),
            text_width: self.text.width(),
        };
        prepare(options, &stages, report)
    }

    /// Mean probabilities; nothing for sound too short for the tagger.
    fn tags(&self, sound: &[f32]) -> Result<Vec<(String, f32)>, String> {
        let Some((tagger, _)) = &self.tagger else { return Ok(Vec::new()) };
        let means = tagger.analyse(sound).mean_tags().unwrap_or_default();
        Ok(tagger.tag_names().iter().map(|name| (*name).to_owned()).zip(means).collect())
    }

    fn states(&self, texts: &[&str]) -> Vec<TextStates> {
        let encoded = self.text.encode(texts);
        encoded
            .into_iter()
            .map(|text| TextStates { states: text.states.into_iter().map(f16::from_f32).collect() })
            .collect()
    }
}
