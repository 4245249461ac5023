//! A set of clips as a judge heard them, and the distance of one set from another.

use mambo_audio::AudioClip;
use mambo_audio::analysis::StructureFeatures;
use serde::Serialize;

use crate::frechet::{self, Draws, Frechet};
use crate::judge::Judge;
use crate::kl::{self, Divergence};
use crate::structure::{self, StructureDistance, StructureRow};
use crate::{EvalError, Rows};

/// A clip whose true peak stays below this counts as silent.
const SILENT_DBFS: f64 = -60.0;

/// One judged clip.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgedClip {
    /// Name; clips of two sets with the same name are a pair.
    pub id: String,
    /// Length in seconds.
    pub seconds: f64,
    /// The judge's tags, `[patches, tags]`.
    pub tags: Rows,
    /// Structure features.
    pub structure: StructureRow,
    /// True peak in dBFS; negative infinity for silence.
    pub true_peak_dbfs: f64,
    /// Hash of the samples, to tell clips apart.
    pub fingerprint: u64,
}

/// Judged clips of one system.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipSet {
    /// Name of the system.
    pub name: String,
    /// The clips.
    pub clips: Vec<JudgedClip>,
    /// The judge's features of all clips, `[patches, features]`.
    pub features: Rows,
}

impl ClipSet {
    /// No clips yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), clips: Vec::new(), features: Rows::default() }
    }

    /// Listens to a clip and keeps what was heard, not the samples.
    pub fn add(&mut self, id: &str, samples: &[f32], rate: u32, judge: &dyn Judge) -> Result<(), EvalError> {
        if !samples.iter().all(|sample| sample.is_finite()) {
            return Err(EvalError::NotFinite { what: format!("{}, clip {id}", self.name) });
        }
        let heard = judge.listen(samples, rate);
        if self.features.width() == 0 {
            self.features = Rows::empty(heard.features.width());
        }
        self.features.append(&heard.features)?;
        self.clips.push(JudgedClip {
            id: id.to_owned(),
            seconds: samples.len() as f64 / f64::from(rate),
            tags: heard.tags,
            structure: StructureFeatures::of(samples, rate).values(),
            true_peak_dbfs: mambo_audio::measure(&AudioClip::from_mono(samples.to_vec(), rate)).true_peak_dbfs,
            fingerprint: fingerprint(samples),
        });
        Ok(())
    }

    /// Structure features of all clips.
    pub fn structure_rows(&self) -> Vec<StructureRow> {
        self.clips.iter().map(|clip| clip.structure).collect()
    }

    /// Number of clips without sound.
    pub fn silent(&self) -> usize {
        self.clips.iter().filter(|clip| clip.true_peak_dbfs < SILENT_DBFS).count()
    }

    /// Number of clips whose true peak reaches full scale.
    pub fn clipped(&self) -> usize {
        self.clips.iter().filter(|clip| clip.true_peak_dbfs >= 0.0).count()
    }

    /// Number of clips that differ from all others.
    pub fn distinct(&self) -> usize {
        let mut prints: Vec<u64> = self.clips.iter().map(|clip| clip.fingerprint).collect();
        prints.sort_unstable();
        prints.dedup();
        prints.len()
    }
}

/// FNV-1a over the bits of the samples.
fn fingerprint(samples: &[f32]) -> u64 {
    samples
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, sample| (hash ^ u64::from(sample.to_bits())).wrapping_mul(0x0100_0000_01b3))
}

/// How far a set of clips is from real music.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetComparison {
    /// Fréchet distance of the judge's features.
    pub frechet: Frechet,
    /// Divergence of what the judge hears in pairs of clips; absent without pairs.
    pub divergence: Option<Divergence>,
    /// Number of pairs.
    pub pairs: usize,
    /// Distance of the distributions of structure features; absent with fewer than two real clips.
    pub structure: Option<StructureDistance>,
}

/// Compares a set with the real one; clips with the same id are pairs.
pub fn compare(judged: &ClipSet, real: &ClipSet, draws: &Draws) -> Result<SetComparison, EvalError> {
    for set in [judged, real] {
        if set.features.count() < 2 {
            return Err(EvalError::TooFewPatches { what: set.name.clone(), found: set.features.count() });
        }
    }
    let mut distributions = Vec::new();
    for clip in &judged.clips {
        let partner = real.clips.iter().find(|other| other.id == clip.id);
        let heard = partner.and_then(|p| Some((kl::clip_distribution(&clip.tags)?, kl::clip_distribution(&p.tags)?)));
        distributions.extend(heard);
    }
    let pairs: Vec<(&[f64], &[f64])> = distributions.iter().map(|(a, b)| (a.as_slice(), b.as_slice())).collect();
    Ok(SetComparison {
        frechet: frechet::frechet_distance(&judged.features, &real.features, draws)?,
        divergence: if pairs.is_empty() { None } else { Some(kl::paired_divergence(&pairs)?) },
        pairs: pairs.len(),
        structure: if real.clips.len() < 2 {
            None
        } else {
            Some(structure::structure_distance(&judged.structure_rows(), &real.structure_rows())?)
        },
    })
}
