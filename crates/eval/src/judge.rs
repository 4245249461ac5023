//! A judge listens to a clip and says what it hears, 3 seconds at a time.

use std::path::Path;

use mambo_audio::AudioClip;
use mambo_model::listen::Musicnn;
use mambo_model::weights::WeightsError;

use crate::Rows;

/// What a judge hears in a clip.
#[derive(Debug, Clone, PartialEq)]
pub struct Listening {
    /// Probability of each tag, `[patches, tags]`.
    pub tags: Rows,
    /// Features for distances, `[patches, features]`.
    pub features: Rows,
}

/// A network (or, in tests, anything) that hears tags and features in sound.
pub trait Judge {
    /// Name for reports.
    fn name(&self) -> &str;
    /// Names of its tags, in the order of [`Listening::tags`].
    fn tag_names(&self) -> &[&'static str];
    /// Listens to mono samples at `rate` Hz. A clip shorter than a patch has no rows.
    fn listen(&self, mono: &[f32], rate: u32) -> Listening;
}

/// musicnn as a judge.
pub struct MusicnnJudge {
    name: String,
    network: Musicnn,
}

impl MusicnnJudge {
    /// Loads converted weights; `name` (for instance "musicnn MSD") stands in reports.
    pub fn load(name: &str, path: &Path) -> Result<Self, WeightsError> {
        Ok(Self { name: name.to_owned(), network: Musicnn::load(path)? })
    }
}

impl Judge for MusicnnJudge {
    fn name(&self) -> &str {
        &self.name
    }

    fn tag_names(&self) -> &[&'static str] {
        self.network.tag_names()
    }

    fn listen(&self, mono: &[f32], rate: u32) -> Listening {
        let output = self.network.analyse_clip(&AudioClip::from_mono(mono.to_vec(), rate));
        Listening {
            tags: Rows::new(self.network.tag_names().len(), output.tags),
            features: Rows::new(mambo_model::listen::musicnn::FEATURES, output.features),
        }
    }
}
