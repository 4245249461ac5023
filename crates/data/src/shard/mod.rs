//! Shards: what training reads. One safetensors file with codec tokens, text states and where they
//! came from; opened as a memory map, so a corpus needs no more memory than the batches in use.
//!
//! | tensor | type | shape | meaning |
//! |---|---|---|---|
//! | `codes` | u16 | `[S, K, T]` | codec tokens; zero after `lengths[s]` frames |
//! | `clock` | u16 | `[S, T]` | beat clock of each frame ([`mambo_model::clock`]); "no beat" after `lengths[s]` |
//! | `lengths` | u32 | `[S]` | frames in use, 1 to T |
//! | `track` | u32 | `[S]` | index into the header's tracks |
//! | `segment`, `version` | u32 | `[S]` | which piece of the track, which augmentation (0: unaltered) |
//! | `caption_offsets` | u32 | `[S+1]` | where an item's captions stand in `caption_index` |
//! | `caption_index` | u32 | `[N]` | index into the header's captions; items may share one |
//! | `text_offsets` | u32 | `[C+1]` | where a caption's states stand in `text_states` |
//! | `text_states` | f16 | `[sum L, D]` | hidden states of the text encoder |
//!
//! The header is JSON in the one metadata entry `mambo`. Nothing in a file is trusted: opening checks
//! every type, shape, offset and code, so that no later access can fail.

mod read;
mod write;

pub use read::{Item, Shard};
pub use write::{ShardWriter, TextStates};

use crate::manifest::{Caption, Split};
use mambo_model::tokens::CodecSpec;
use serde::{Deserialize, Serialize};

/// The metadata entry with the header.
const HEADER_KEY: &str = "mambo";
/// Raised when the layout changes.
const LAYOUT: u32 = 2;

/// What all items of a shard have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardSpec {
    /// Codec of the tokens.
    pub codec: CodecSpec,
    /// Hash of the codec's weights: tokens of another codec must never be mixed in.
    pub codec_hash: String,
    /// Name of the text encoder.
    pub text_encoder: String,
    /// Hash of its weights.
    pub text_encoder_hash: String,
    /// Width D of its states.
    pub text_width: usize,
    /// Frames T an item can hold.
    pub frames: usize,
}

/// A track that items of a shard come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardTrack {
    /// Id in the manifest.
    pub id: String,
    /// Part of the corpus.
    pub split: Split,
    /// Licence tier in the manifest.
    pub tier: String,
}

/// The JSON header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardHeader {
    /// Layout version.
    layout: u32,
    /// What all items have in common.
    pub spec: ShardSpec,
    /// Tracks by index.
    pub tracks: Vec<ShardTrack>,
    /// Captions by index.
    pub captions: Vec<Caption>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::CaptionSource;
    use half::f16;
    use mambo_model::clock::{CYCLE_TICKS, Metronome, NO_BEAT};
    use proptest::prelude::*;
    use std::path::Path;

    #[derive(Debug, Clone)]
    struct ItemPlan {
        track: usize,
        segment: u32,
        version: u32,
        length: usize,
        captions: Vec<usize>,
        fill: u16,
    }

    /// Every other item has no beat.
    fn clock(plan: &ItemPlan) -> Vec<u16> {
        let tempo = plan.fill.is_multiple_of(2).then_some(100.0);
        (0..plan.length as u64).map(|frame| Metronome::new(tempo, 21.5).at(frame)).collect()
    }

    fn spec(levels: usize, frames: usize) -> ShardSpec {
        ShardSpec {
            codec: CodecSpec { name: "house".into(), sample_rate: 44_100, hop: 2048, levels, cardinality: 1024 },
            codec_hash: "c".into(),
            text_encoder: "minilm".into(),
            text_encoder_hash: "t".into(),
            text_width: 3,
            frames,
        }
    }

    fn track(index: usize) -> ShardTrack {
        ShardTrack { id: format!("track{index}"), split: Split::ALL[index % 4], tier: "A".into() }
    }

    fn caption(index: usize) -> (Caption, TextStates) {
        let text = format!("caption \"{index}\" ü");
        let states = (0..(index % 4 + 1) * 3).map(|i| f16::from_f32(i as f32 * 0.5 - index as f32)).collect();
        (Caption { text, source: CaptionSource::Metadata }, TextStates { states })
    }

    fn codes(plan: &ItemPlan, levels: usize) -> Vec<u16> {
        (0..levels * plan.length).map(|i| (plan.fill as usize * 31 + i * 7) as u16 % 1024).collect()
    }

    fn write(path: &Path, levels: usize, frames: usize, plans: &[ItemPlan]) {
        let mut writer = ShardWriter::new(spec(levels, frames));
        for plan in plans {
            let captions: Vec<usize> = plan
                .captions
                .iter()
                .map(|&index| {
                    let (caption, states) = caption(index);
                    writer.caption(&caption, || Ok(states)).unwrap()
                })
                .collect();
            let track = writer.track(&track(plan.track));
            writer.item(track, plan.segment, plan.version, &codes(plan, levels), &clock(plan), &captions).unwrap();
        }
        writer.finish(path).unwrap();
    }

    fn plans(frames: usize) -> impl Strategy<Value = Vec<ItemPlan>> {
        let captions = prop::collection::vec(0..9_usize, 1..4);
        let one = (0..5_usize, 0..9_u32, 0..8_u32, 1..=frames, captions, any::<u16>()).prop_map(
            |(track, segment, version, length, captions, fill)| ItemPlan {
                track,
                segment,
                version,
                length,
                captions,
                fill,
            },
        );
        prop::collection::vec(one, 1..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_written_is_read_and_bytes_repeat(levels in 1..5_usize, plans in plans(20)) {
            let folder = tempfile::tempdir().unwrap();
            let (one, two) = (folder.path().join("1.safetensors"), folder.path().join("2.safetensors"));
            write(&one, levels, 20, &plans);
            write(&two, levels, 20, &plans);
            prop_assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
            let shard = Shard::open(&one).unwrap();
            prop_assert_eq!(&shard.header().spec, &spec(levels, 20));
            prop_assert_eq!(shard.len(), plans.len());
            for (index, plan) in plans.iter().enumerate() {
                let item = shard.item(index);
                prop_assert_eq!(item.track, &track(plan.track));
                prop_assert_eq!((item.segment, item.version, item.length), (plan.segment, plan.version, plan.length));
                let expected = codes(plan, levels);
                for level in 0..levels {
                    let row = &item.codes_kt[level * 20..(level + 1) * 20];
                    prop_assert_eq!(&row[..plan.length], &expected[level * plan.length..(level + 1) * plan.length]);
                    prop_assert!(row[plan.length..].iter().all(|&code| code == 0));
                }
                prop_assert_eq!(&item.clock_t[..plan.length], &clock(plan)[..]);
                prop_assert!(item.clock_t[plan.length..].iter().all(|&position| position == NO_BEAT));
                for (place, &wanted) in plan.captions.iter().enumerate() {
                    let (expected, states) = caption(wanted);
                    let found = item.captions[place] as usize;
                    prop_assert_eq!(&shard.header().captions[found], &expected);
                    prop_assert_eq!(shard.text_states(found), &states.states[..]);
                }
            }
        }

        #[test]
        fn no_damage_makes_reading_panic(position in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>(), truncate in any::<bool>()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.safetensors");
            let plan = ItemPlan { track: 1, segment: 2, version: 0, length: 7, captions: vec![1, 2], fill: 3 };
            write(&path, 2, 8, &[plan.clone(), plan]);
            let mut bytes = std::fs::read(&path).unwrap();
            if truncate {
                bytes.truncate(cut.index(bytes.len()));
            } else {
                let at = position.index(bytes.len());
                bytes[at] ^= value;
            }
            std::fs::write(&path, bytes).unwrap();
            // Damage in a code or a state can go unnoticed; whatever opens must be safe to read.
            if let Ok(shard) = Shard::open(&path) {
                for index in 0..shard.len() {
                    for &caption in shard.item(index).captions {
                        prop_assert!(!shard.text_states(caption as usize).is_empty());
                    }
                    prop_assert!(shard.item(index).codes_kt.iter().all(|&code| code < 1024));
                }
            }
        }
    }

    #[test]
    fn errors_name_the_file_and_the_broken_rule() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, b"").unwrap();
        let message = Shard::open(&path).unwrap_err().to_string();
        assert!(message.contains("x.safetensors") && message.contains("expected"), "{message}");
        let message = Shard::open(folder.path()).unwrap_err().to_string();
        assert!(message.contains("not a plain file"), "{message}");
        let mut writer = ShardWriter::new(spec(2, 8));
        let track = writer.track(&track(0));
        let text = writer.caption(&caption(0).0, || Ok(caption(0).1)).unwrap();
        assert!(
            writer.item(track, 0, 0, &[1; 18], &[0; 9], &[text]).unwrap_err().to_string().contains('9'),
            "too long"
        );
        assert!(writer.item(track, 0, 0, &[1; 3], &[0; 1], &[text]).is_err(), "no whole frame");
        assert!(writer.item(track, 0, 0, &[1024; 4], &[0; 2], &[text]).is_err(), "special token");
        assert!(writer.item(track, 0, 0, &[1; 4], &[0; 2], &[]).is_err(), "no caption");
        assert!(writer.item(track, 0, 0, &[1; 4], &[0; 3], &[text]).is_err(), "a clock too long");
        assert!(writer.item(track, 0, 0, &[1; 4], &[CYCLE_TICKS; 2], &[text]).is_err(), "beyond the cycle");
    }
}
