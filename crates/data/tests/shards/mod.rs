//! Small sound shards, and all that is read of one.

use half::f16;
use mambo_data::manifest::{Caption, CaptionSource, Split};
use mambo_data::shard::{Shard, ShardSpec, ShardTrack, ShardWriter, TextStates};
use mambo_model::tokens::CodecSpec;
use std::path::Path;

/// The bytes of shards of one and of three items; `path` is where they are written meanwhile.
pub fn seeds(path: &Path) -> Vec<Vec<u8>> {
    let shard = |items: usize, levels: usize, frames: usize| {
        let codec = CodecSpec { name: "house".into(), sample_rate: 44_100, hop: 2048, levels, cardinality: 16 };
        let mut writer = ShardWriter::new(ShardSpec {
            codec,
            codec_hash: "c".into(),
            text_encoder: "t".into(),
            text_encoder_hash: "h".into(),
            text_width: 2,
            frames,
        });
        for item in 0..items {
            let track =
                writer.track(&ShardTrack { id: format!("{item}"), split: Split::ALL[item % 4], tier: "A".into() });
            let caption = Caption { text: format!("caption {item}"), source: CaptionSource::Metadata };
            let states = TextStates { states: vec![f16::ONE; 2 * (item + 1)] };
            let caption = writer.caption(&caption, || Ok(states)).expect("a caption");
            let (codes, clock) = (vec![item as u16; levels * (frames - item)], vec![7; frames - item]);
            writer.item(track, item as u32, 0, &codes, &clock, &[caption]).expect("an item");
        }
        writer.finish(path).expect("a shard is written");
        std::fs::read(path).expect("a shard is read")
    };
    vec![shard(1, 1, 1), shard(3, 2, 4)]
}

/// Reads everything in a shard.
pub fn read(path: &Path) {
    match Shard::open(path) {
        Ok(shard) => {
            for index in 0..shard.len() {
                let item = shard.item(index);
                assert!(!item.captions.is_empty() && item.length > 0 && item.length <= item.clock_t.len());
                assert!(item.codes_kt.iter().all(|&code| usize::from(code) < shard.header().spec.codec.cardinality));
                for &caption in item.captions {
                    assert!(shard.text_states(caption as usize).iter().all(|value| value.is_finite()));
                }
            }
        }
        Err(error) => drop(error.to_string()),
    }
}
