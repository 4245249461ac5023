//! The codec judgement with a codec of known quality: four bits of every sample a level.

#![allow(clippy::unwrap_used)]

mod common;

use common::{OctaveJudge, RATE, tune};
use mambo_eval::codec_report::{CodecSettings, NamedCodec, TestClip, codec_report, write_spectrograms};
use mambo_eval::frechet::Draws;
use mambo_eval::{EvalError, Judge};
use mambo_model::codec::Codec;
use mambo_model::tokens::{CodecSpec, CodecTokens};

/// Keeps four more bits of every sample with each level; `deaf` plays the same hum whatever the tokens.
struct BitCodec {
    spec: CodecSpec,
    deaf: bool,
}

impl BitCodec {
    fn new(deaf: bool) -> Self {
        let spec = CodecSpec { name: "bits".into(), sample_rate: RATE, hop: 1, levels: 4, cardinality: 16 };
        Self { spec, deaf }
    }
}

impl Codec for BitCodec {
    fn spec(&self) -> &CodecSpec {
        &self.spec
    }

    fn encode(&self, mono: &[f32]) -> CodecTokens {
        let mut codes = Vec::with_capacity(4 * mono.len());
        for level in 0..4 {
            let nibble = |sample: &f32| {
                let value = ((sample.clamp(-1.0, 0.9999) + 1.0) * 32_768.0) as u16;
                (value >> (12 - 4 * level)) & 15
            };
            codes.extend(mono.iter().map(nibble));
        }
        CodecTokens::new(self.spec.clone(), codes, mono.len()).expect("codes below 16")
    }

    fn decode(&self, tokens: &CodecTokens, levels: usize, seed: u64) -> Vec<f32> {
        if self.deaf {
            return tune(1, tokens.frames as f64 / f64::from(RATE), seed);
        }
        let sample = |t: usize| {
            let value = (0..levels).fold(0u32, |value, level| value << 4 | u32::from(tokens.row(level)[t]));
            let step = 2.0 / f32::from(16u16).powi(levels as i32);
            (value as f32 + 0.5) * step - 1.0
        };
        (0..tokens.frames).map(sample).collect()
    }
}

fn clips(count: u64) -> Vec<TestClip> {
    (0..count).map(|n| TestClip { id: format!("clip {n}"), samples: tune(n as usize % 3, 4.0, 40 + n) }).collect()
}

#[test]
fn more_levels_are_better_and_floors_stand_beside() {
    let (codec, deaf) = (BitCodec::new(false), BitCodec::new(true));
    let codecs = [
        NamedCodec { name: "bits".into(), codecs: vec![&codec], floor: false },
        NamedCodec { name: "hum".into(), codecs: vec![&deaf], floor: true },
    ];
    let settings = CodecSettings { draws: Draws { patches: Some(20), ..Draws::default() }, ..CodecSettings::default() };
    let judges: [&dyn Judge; 2] = [&OctaveJudge, &OctaveJudge];
    let (result, report) = codec_report(&codecs, &clips(6), &judges, &settings, &mut |_| {}).expect("judges");
    let (bits, hum) = (&result.codecs[0], &result.codecs[1]);
    // Eight levels are left out: the codec has four.
    let counts: Vec<usize> = bits.levels.iter().map(|level| level.levels).collect();
    assert_eq!(counts, [1, 2, 4]);
    for pair in bits.levels.windows(2) {
        assert!(pair[1].mel_distance < pair[0].mel_distance, "{pair:#?}");
        assert!(pair[1].chroma_correlation >= pair[0].chroma_correlation - 1e-4);
        assert!(pair[1].judges[0].tags.clip >= pair[0].judges[0].tags.clip - 1e-9);
    }
    let all = bits.at(4).expect("judged");
    assert!(all.judges[0].tags.clip > 0.9999 && all.chroma_correlation > 0.999, "{all:#?}");
    assert!(all.octave_db.iter().all(|db| db.abs() < 0.1), "{:?}", all.octave_db);
    let floor = hum.at(4).expect("judged");
    assert!(floor.judges[0].frechet.distance > 10.0 * all.judges[0].frechet.distance);
    assert!(floor.chroma_correlation < 0.5 && result.chroma_strangers < 0.6);
    assert!(all.mel_distance < 0.1 * result.mel_distance_strangers);
    assert_eq!(all.judges.len(), 2);
    let tags = &all.judges[0].tags;
    assert!(tags.clip_shuffled < tags.clip && tags.clip_constant < tags.clip);
    // The last four bits of noise are even, the first four are mostly two values.
    assert!(bits.codebooks[3].used == 1.0 && bits.codebooks[3].perplexity > 15.0);
    assert!(bits.codebooks[0].perplexity < 8.0 && bits.codebooks[0].repeated > bits.codebooks[3].repeated);
    assert!(bits.encode.audio_seconds > 23.9 && bits.encode.times_real_time() > 1.0);

    let text = report.text();
    assert!(text.contains("floor: another clip") && text.contains("each doubling improves"), "{text}");
    assert!(report.plots[0].svg.starts_with("<svg") && report.plots[0].svg.contains("chroma correlation"));
    assert_eq!(report.players.len(), 3 * (1 + 2 * 3));
    let folder = tempfile::tempdir().expect("a folder");
    let paths = write_spectrograms(&report, folder.path()).expect("writes");
    assert!(paths.len() == 21 && paths.iter().all(|path| path.exists()));
}

#[test]
fn each_clip_may_have_a_codec_of_its_own() {
    let (codec, deaf) = (BitCodec::new(false), BitCodec::new(true));
    // Five clips are heard, the last is hummed.
    let each: Vec<&dyn Codec> = (0..6).map(|clip| if clip < 5 { &codec as &dyn Codec } else { &deaf }).collect();
    let codecs = [
        NamedCodec { name: "bits".into(), codecs: vec![&codec], floor: false },
        NamedCodec { name: "mixed".into(), codecs: each, floor: false },
        NamedCodec { name: "hum".into(), codecs: vec![&deaf], floor: true },
    ];
    let settings = CodecSettings {
        levels: vec![4],
        draws: Draws { patches: Some(20), ..Draws::default() },
        ..CodecSettings::default()
    };
    let (result, _) = codec_report(&codecs, &clips(6), &[&OctaveJudge], &settings, &mut |_| {}).expect("judges");
    let [bits, mixed, hum] = [0, 1, 2].map(|index: usize| result.codecs[index].levels[0].mel_distance);
    assert!((mixed - bits) > 0.0 && (mixed - bits) < 0.3 * (hum - bits), "{bits} {mixed} {hum}");
}

#[test]
fn a_codec_with_fewer_levels_than_asked_for_is_judged_with_all_it_has() {
    let codec = BitCodec::new(false);
    let codecs = [NamedCodec { name: "bits".into(), codecs: vec![&codec], floor: false }];
    let settings = CodecSettings {
        levels: vec![9],
        draws: Draws { patches: Some(20), ..Draws::default() },
        ..CodecSettings::default()
    };
    let judges: [&dyn Judge; 1] = [&OctaveJudge];
    let (result, report) = codec_report(&codecs, &clips(6), &judges, &settings, &mut |_| {}).expect("judges");
    let counts: Vec<usize> = result.codecs[0].levels.iter().map(|level| level.levels).collect();
    assert_eq!(counts, [4]);
    // Nothing is known of one level, so there are no bars.
    assert!(!report.text().contains("each doubling improves"), "{}", report.text());
}

#[test]
fn nothing_to_judge_is_an_error() {
    let codec = BitCodec::new(false);
    let codecs = [NamedCodec { name: "bits".into(), codecs: vec![&codec], floor: false }];
    let settings = CodecSettings::default();
    let empty = codec_report(&codecs, &[], &[&OctaveJudge], &settings, &mut |_| {});
    assert!(matches!(empty, Err(EvalError::NoClips { .. })));
    let nobody = codec_report(&codecs, &clips(2), &[], &settings, &mut |_| {});
    assert!(matches!(nobody, Err(EvalError::NoClips { .. })));
    let nameless = [NamedCodec { name: "bits".into(), codecs: Vec::new(), floor: false }];
    let empty = codec_report(&nameless, &clips(2), &[&OctaveJudge], &settings, &mut |_| {});
    assert!(matches!(empty, Err(EvalError::NoClips { .. })));
    let none = codec_report(&[], &clips(2), &[&OctaveJudge], &settings, &mut |_| {});
    assert!(matches!(none, Err(EvalError::NoClips { .. })));
}
