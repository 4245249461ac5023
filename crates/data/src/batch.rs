//! Batches: a deterministic shuffle of the items of one split, random crops, one caption an item and epoch.
//!
//! A batch depends only on (shards, options, epoch, index), so a resumed run sees exactly what an
//! uninterrupted one would have. Results are plain vectors; the trainer makes tensors of them.

use crate::error::DataError;
use crate::manifest::Split;
use crate::shard::Shard;
use mambo_model::clock::{CYCLE_BEATS, NO_BEAT, later};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::sync::Arc;

/// How batches are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchOptions {
    /// Only items of these splits.
    pub splits: Vec<Split>,
    /// Only items of these licence tiers; empty: all.
    pub tiers: Vec<String>,
    /// Leave augmented versions out (for validation).
    pub unaltered_only: bool,
    /// Items in a batch, B.
    pub batch: usize,
    /// Frames in a crop, T.
    pub frames: usize,
    /// Codebooks in use, from the first, K.
    pub levels: usize,
    /// Text rows at most, L; longer texts are cut.
    pub max_text: usize,
    /// Seed of shuffle, crops and captions.
    pub seed: u64,
}

/// One batch in plain vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Codec tokens, row-major `[B, K, T]`; zero after an item's length.
    pub codes_bkt: Vec<u16>,
    /// Beat clock of each frame, row-major `[B, T]`; "no beat" after an item's length. The first beat of an item has
    /// a random place in the clock's cycle.
    pub clock_bt: Vec<u16>,
    /// Frames in use of each item.
    pub lengths_b: Vec<usize>,
    /// Text states, row-major `[B, L, D]`, zero where masked.
    pub text_bld: Vec<f32>,
    /// 1 where there is text, else 0, row-major `[B, L]`.
    pub text_mask_bl: Vec<f32>,
    /// L, the longest text of this batch.
    pub text_length: usize,
    /// The caption texts.
    pub captions_b: Vec<String>,
    /// Track ids.
    pub tracks_b: Vec<String>,
    /// Shard and index within it of each item, and the first frame of the crop.
    pub places_b: Vec<(usize, usize, usize)>,
}

/// Draws batches from open shards.
#[derive(Debug, Clone)]
pub struct BatchSource {
    shards: Arc<Vec<Shard>>,
    options: BatchOptions,
    /// (shard, item) of everything in the chosen splits.
    items: Vec<(usize, usize)>,
}

/// An independent stream for a purpose: the same arguments always give the same numbers.
fn stream(seed: u64, purpose: u64, epoch: u64, item: u64) -> ChaCha8Rng {
    let mut key = [0_u8; 32];
    for (bytes, value) in key.chunks_exact_mut(8).zip([seed, purpose, epoch, item]) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Purposes of [`stream`].
const SHUFFLE: u64 = 1;
const ITEM: u64 = 2;

/// A number below `limit` without modulo bias worth mentioning (64 random bits).
fn below(random: &mut ChaCha8Rng, limit: usize) -> usize {
    ((u128::from(random.next_u64()) * limit as u128) >> 64) as usize
}

impl BatchSource {
    /// Selects the items.
    ///
    /// # Errors
    /// No shard or no item in the splits, or sizes that the shards cannot give.
    pub fn new(shards: Arc<Vec<Shard>>, options: BatchOptions) -> Result<Self, DataError> {
        let refuse = |problem: String| Err(DataError::Argument { what: "batches", problem });
        let Some(first) = shards.first() else {
            return refuse("there are no shards; run `mambo prepare` first".into());
        };
        let spec = &first.header().spec;
        if options.batch == 0 || options.frames == 0 || options.max_text == 0 {
            return refuse("batch, frames and max_text must be at least 1".into());
        }
        if options.levels == 0 || options.levels > spec.codec.levels {
            return refuse(format!("{} codebooks asked for, the shards have {}", options.levels, spec.codec.levels));
        }
        let mut items = Vec::new();
        for (shard_index, shard) in shards.iter().enumerate() {
            for index in 0..shard.len() {
                let item = shard.item(index);
                let wanted = options.splits.contains(&item.track.split)
                    && (options.tiers.is_empty() || options.tiers.contains(&item.track.tier))
                    && (item.version == 0 || !options.unaltered_only);
                if wanted {
                    items.push((shard_index, index));
                }
            }
        }
        if items.is_empty() {
            return refuse(format!("the shards have no item in the splits {:?}", options.splits));
        }
        Ok(Self { shards, options, items })
    }

    /// Items of the chosen splits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Never true: a source has items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Width D of the text states.
    #[must_use]
    pub fn text_width(&self) -> usize {
        self.shards[0].header().spec.text_width
    }

    /// Codec frames a second.
    #[must_use]
    pub fn frame_rate(&self) -> f64 {
        self.shards[0].header().spec.codec.frame_rate()
    }

    /// The shards the batches come from.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// (shard, item) of everything in the chosen splits, unshuffled.
    #[must_use]
    pub fn items(&self) -> &[(usize, usize)] {
        &self.items
    }

    /// Batches an epoch; the last one is filled up from the beginning of the same epoch's order.
    #[must_use]
    pub fn batches_per_epoch(&self) -> usize {
        self.items.len().div_ceil(self.options.batch)
    }

    /// The batch of a training step counted from 0, with the epoch running on.
    #[must_use]
    pub fn batch_at_step(&self, step: u64) -> Batch {
        let per_epoch = self.batches_per_epoch() as u64;
        self.batch(step / per_epoch, (step % per_epoch) as usize)
    }

    /// The items of an epoch in order (Fisher-Yates).
    #[must_use]
    pub fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.items.len()).collect();
        let mut random = stream(self.options.seed, SHUFFLE, epoch, 0);
        for last in (1..order.len()).rev() {
            order.swap(last, below(&mut random, last + 1));
        }
        order
    }

    /// Batch `index` of `epoch`.
    #[must_use]
    pub fn batch(&self, epoch: u64, index: usize) -> Batch {
        let order = self.order(epoch);
        let start = index * self.options.batch;
        let chosen: Vec<usize> = (start..start + self.options.batch).map(|place| order[place % order.len()]).collect();
        self.collect(epoch, &chosen)
    }

    /// The same items, crops and captions at any batch size: items `start..start+batch` in stored order,
    /// cropped and captioned as in epoch 0. For validation.
    #[must_use]
    pub fn in_order(&self, start: usize) -> Batch {
        let end = (start + self.options.batch).min(self.items.len());
        let chosen: Vec<usize> = (start..end).collect();
        self.collect(0, &chosen)
    }

    fn collect(&self, epoch: u64, chosen: &[usize]) -> Batch {
        let BatchOptions { frames, levels, max_text, seed, .. } = self.options;
        let width = self.text_width();
        let mut batch = Batch {
            codes_bkt: vec![0; chosen.len() * levels * frames],
            clock_bt: vec![NO_BEAT; chosen.len() * frames],
            lengths_b: Vec::with_capacity(chosen.len()),
            text_bld: Vec::new(),
            text_mask_bl: Vec::new(),
            text_length: 0,
            captions_b: Vec::with_capacity(chosen.len()),
            tracks_b: Vec::with_capacity(chosen.len()),
            places_b: Vec::with_capacity(chosen.len()),
        };
        let mut texts = Vec::with_capacity(chosen.len());
        for (place, &choice) in chosen.iter().enumerate() {
            let (shard_index, item_index) = self.items[choice];
            let shard = &self.shards[shard_index];
            let item = shard.item(item_index);
            let mut random = stream(seed, ITEM, epoch, choice as u64);
            let length = item.length.min(frames);
            let first = below(&mut random, item.length - length + 1);
            let caption = item.captions[below(&mut random, item.captions.len())] as usize;
            let stored = shard.header().spec.frames;
            for level in 0..levels {
                let source = &item.codes_kt[level * stored + first..level * stored + first + length];
                let target = (place * levels + level) * frames;
                batch.codes_bkt[target..target + length].copy_from_slice(source);
            }
            let turned = below(&mut random, usize::from(CYCLE_BEATS)) as u16;
            let clock = &item.clock_t[first..first + length];
            let target = &mut batch.clock_bt[place * frames..place * frames + length];
            target.iter_mut().zip(clock).for_each(|(target, &position)| *target = later(position, turned));
            batch.lengths_b.push(length);
            batch.captions_b.push(shard.header().captions[caption].text.clone());
            batch.tracks_b.push(item.track.id.clone());
            batch.places_b.push((shard_index, item_index, first));
            let states = shard.text_states(caption);
            let states = &states[..states.len().min(max_text * width)];
            batch.text_length = batch.text_length.max(states.len() / width);
            texts.push(states);
        }
        batch.text_bld = vec![0.0; chosen.len() * batch.text_length * width];
        batch.text_mask_bl = vec![0.0; chosen.len() * batch.text_length];
        for (place, states) in texts.into_iter().enumerate() {
            let start = place * batch.text_length;
            for (target, state) in batch.text_bld[start * width..].iter_mut().zip(states) {
                *target = state.to_f32();
            }
            batch.text_mask_bl[start..start + states.len() / width].fill(1.0);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Caption, CaptionSource};
    use crate::shard::{ShardSpec, ShardTrack, ShardWriter, TextStates};
    use half::f16;
    use mambo_model::clock::{CYCLE_TICKS, Metronome, TICKS_PER_BEAT};
    use mambo_model::tokens::CodecSpec;
    use proptest::prelude::*;

    const LEVELS: usize = 3;

    /// Two shards; code = item * 100 + frame (level 0), so that crops can be recognised.
    fn shards(folder: &std::path::Path) -> Arc<Vec<Shard>> {
        for name in 0..2_u16 {
            let mut writer = ShardWriter::new(ShardSpec {
                codec: CodecSpec {
                    name: "x".into(),
                    sample_rate: 44_100,
                    hop: 2048,
                    levels: LEVELS,
                    cardinality: 1024,
                },
                codec_hash: String::new(),
                text_encoder: String::new(),
                text_encoder_hash: String::new(),
                text_width: 2,
                frames: 40,
            });
            for item in 0..5_u16 {
                let length = 10 + usize::from(item) * 7;
                let captions: Vec<usize> = (0..3)
                    .map(|k| {
                        let caption = Caption { text: format!("{name} {item} {k}"), source: CaptionSource::Person };
                        let states = vec![f16::from_f32(f32::from(item)); 2 * (k + 1)];
                        writer.caption(&caption, || Ok(TextStates { states })).unwrap()
                    })
                    .collect();
                let split = if item == 4 { Split::Valid } else { Split::Train };
                let track = writer.track(&ShardTrack { id: format!("{name}-{item}"), split, tier: "A".into() });
                let codes: Vec<u16> =
                    (0..LEVELS).flat_map(|_| (0..length as u16).map(move |t| item * 100 + t)).collect();
                let clock: Vec<u16> = (0..length as u64).map(|t| Metronome::new(Some(90.0), 21.5).at(t)).collect();
                writer.item(track, 0, u32::from(item % 2), &codes, &clock, &captions).unwrap();
            }
            writer.finish(&folder.join(format!("{name}.safetensors"))).unwrap();
        }
        Arc::new(Shard::open_folders(&[folder]).unwrap())
    }

    fn options(batch: usize, frames: usize, seed: u64) -> BatchOptions {
        BatchOptions {
            splits: vec![Split::Train],
            tiers: vec![],
            unaltered_only: false,
            batch,
            frames,
            levels: 2,
            max_text: 2,
            seed,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn batches_repeat_cover_an_epoch_and_crop_within_the_item(batch in 1..9_usize, frames in 1..50_usize, seed in any::<u64>(), epoch in 0..5_u64) {
            let folder = tempfile::tempdir().unwrap();
            let shards = shards(folder.path());
            let source = BatchSource::new(Arc::clone(&shards), options(batch, frames, seed)).unwrap();
            let again = BatchSource::new(shards, options(batch, frames, seed)).unwrap();
            prop_assert_eq!(source.len(), 8);
            let mut seen = std::collections::BTreeMap::new();
            // Backwards on the second source: order of calls must not matter.
            for index in (0..source.batches_per_epoch()).rev() {
                let one = source.batch(epoch, index);
                prop_assert_eq!(&one, &again.batch_at_step(epoch * source.batches_per_epoch() as u64 + index as u64));
                for place in 0..batch {
                    let (_, item, first) = one.places_b[place];
                    let length = one.lengths_b[place];
                    prop_assert_eq!(length, frames.min(10 + item * 7));
                    for level in 0..2 {
                        let row = &one.codes_bkt[(place * 2 + level) * frames..][..frames];
                        for (t, &code) in row.iter().enumerate() {
                            let expected = if t < length { item * 100 + first + t } else { 0 };
                            prop_assert_eq!(usize::from(code), expected);
                        }
                    }
                    let clock = &one.clock_bt[place * frames..][..frames];
                    let turned = clock[0].wrapping_sub(Metronome::new(Some(90.0), 21.5).at(first as u64));
                    prop_assert_eq!(turned % TICKS_PER_BEAT, 0);
                    for (t, &position) in clock.iter().enumerate() {
                        let plain = Metronome::new(Some(90.0), 21.5).at((first + t) as u64);
                        let beats = turned.wrapping_add(CYCLE_TICKS) / TICKS_PER_BEAT;
                        prop_assert_eq!(position, if t < length { later(plain, beats) } else { NO_BEAT });
                    }
                    let mask = &one.text_mask_bl[place * one.text_length..][..one.text_length];
                    let used = mask.iter().filter(|&&value| value == 1.0).count();
                    prop_assert!((1..=2).contains(&used));
                    let text = &one.text_bld[place * one.text_length * 2..][..one.text_length * 2];
                    prop_assert!(text[..used * 2].iter().all(|&value| value == item as f32));
                    prop_assert!(text[used * 2..].iter().all(|&value| value == 0.0));
                    seen.entry(one.tracks_b[place].clone()).and_modify(|count| *count += 1).or_insert(1);
                }
            }
            prop_assert_eq!(seen.len(), 8);
        }
    }

    #[test]
    fn epochs_differ_and_captions_vary() {
        let folder = tempfile::tempdir().unwrap();
        let source = BatchSource::new(shards(folder.path()), options(8, 5, 1)).unwrap();
        assert_ne!(source.order(0), source.order(1));
        let captions: std::collections::BTreeSet<String> =
            (0..20).flat_map(|epoch| source.batch(epoch, 0).captions_b).collect();
        assert_eq!(captions.len(), 24, "all captions of all items are drawn in time");
    }

    #[test]
    fn splits_versions_and_wrong_sizes_are_respected() {
        let folder = tempfile::tempdir().unwrap();
        let shards = shards(folder.path());
        let unaltered = BatchOptions { unaltered_only: true, ..options(2, 5, 0) };
        assert_eq!(BatchSource::new(Arc::clone(&shards), unaltered).unwrap().len(), 4);
        let valid = BatchOptions { splits: vec![Split::Valid], ..options(8, 5, 0) };
        let source = BatchSource::new(Arc::clone(&shards), valid).unwrap();
        assert_eq!(source.in_order(0).tracks_b, ["0-4", "1-4"]);
        let test = BatchOptions { splits: vec![Split::Test], ..options(2, 5, 0) };
        assert!(BatchSource::new(Arc::clone(&shards), test).is_err());
        assert!(BatchSource::new(shards, BatchOptions { levels: 4, ..options(2, 5, 0) }).is_err());
    }
}
