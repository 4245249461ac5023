//! From a batch of clips to what the language model reads and should say next.

use mambo_data::batch::Batch;
use mambo_model::clock;
use mambo_model::lm::{Columns, LmConfig, Logits, Targets, TextBatch, echoes};
use mambo_model::random;
use mambo_model::sampler::Sampling;
use rand_chacha::ChaCha8Rng;

/// Staggered inputs and targets, row-major `[B, K, T]`: column j of the targets follows column j of the inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Start column, then the staggered codes but for the last column.
    pub inputs: Vec<u16>,
    /// The staggered codes; the special token where there is nothing to learn.
    pub targets: Vec<u16>,
    /// Beat clock of the frame that each column predicts for the first codebook, `[B, T]`.
    pub clock: Vec<u16>,
    /// What stood at each lag of the model, `[B, lags, K, T]`; follows the inputs.
    echoes: Vec<u16>,
    /// Tempo class of each clip, `[B]`.
    pub tempo: Vec<usize>,
    /// Clips B.
    pub batch: usize,
}

/// Staggers the codes; `frame_rate` is the codec's. Columns stop with the clip, as at generation there is no end to
/// announce.
pub fn arrange(config: &LmConfig, batch: &Batch, frame_rate: f64) -> Sequence {
    let (books, special) = (config.codebooks, config.special());
    let clips = batch.lengths_b.len();
    let frames = batch.codes_bkt.len() / (clips * books);
    let mut targets = vec![special; clips * books * frames];
    let mut inputs = targets.clone();
    for (row, (target, input)) in targets.chunks_exact_mut(frames).zip(inputs.chunks_exact_mut(frames)).enumerate() {
        let length = batch.lengths_b[row / books];
        let delay = config.delays[row % books].min(frames);
        let count = length.min(frames - delay);
        target[delay..delay + count].copy_from_slice(&batch.codes_bkt[row * frames..][..count]);
        input[1..].copy_from_slice(&target[..frames - 1]);
    }
    let tempo = (batch.clock_bt.chunks_exact(frames).zip(&batch.lengths_b))
        .map(|(clock, &length)| clock::tempo_class(clock::tempo(&clock[..length], frame_rate as f32)))
        .collect();
    let mut sequence =
        Sequence { inputs, targets, clock: batch.clock_bt.clone(), echoes: Vec::new(), tempo, batch: clips };
    sequence.listen_back(config);
    sequence
}

impl Sequence {
    /// Takes the echoes from the inputs as they are now.
    fn listen_back(&mut self, config: &LmConfig) {
        self.echoes = echoes(config, &self.inputs, &self.clock, self.batch);
    }

    /// Takes clock and echoes from some clips; the tempo to be read from the text stays.
    pub fn silence_clock(&mut self, config: &LmConfig, clips: &[bool]) {
        let frames = self.clock.len() / self.batch;
        for (clock, _) in self.clock.chunks_exact_mut(frames).zip(clips).filter(|(_, without)| **without) {
            clock.fill(clock::NO_BEAT);
        }
        self.listen_back(config);
    }

    /// What the model reads.
    pub fn columns(&self) -> Columns<'_> {
        Columns { codes: &self.inputs, clock: &self.clock, echoes: &self.echoes }
    }

    /// What it should say.
    pub fn expected(&self) -> Targets<'_> {
        Targets { codes: &self.targets, tempo: &self.tempo, batch: self.batch }
    }
}

/// Replaces each input code with probability `rate` by another code of the same codebook in this batch, so
/// that replacements are as frequent as codes are.
pub fn corrupt(config: &LmConfig, sequence: &mut Sequence, rate: f32, rng: &mut ChaCha8Rng) {
    if rate == 0.0 {
        return;
    }
    let (books, special) = (config.codebooks, config.special());
    let frames = sequence.inputs.len() / (sequence.batch * books);
    for at in 0..sequence.inputs.len() {
        if random::uniform(rng) >= rate || sequence.inputs[at] == special {
            continue;
        }
        let book = at / frames % books;
        let clip = random::below(rng, sequence.batch);
        let code = sequence.targets[(clip * books + book) * frames + random::below(rng, frames)];
        if code != special {
            sequence.inputs[at] = code;
        }
    }
    sequence.listen_back(config);
}

/// Longest stretch that [`hold`] makes, in frames (0.4 s at 21.5 Hz): longer ones teach it to let the rhythm go.
const LONGEST_HOLD: usize = 8;

/// Lets inputs stand still: about a share `rate` of the columns lies in stretches that repeat the column before them,
/// while the targets go on. A model that has only read real clips, sampled from, holds a tone longer and longer
/// because it never saw a hold that was not meant.
pub fn hold(config: &LmConfig, sequence: &mut Sequence, rate: f32, rng: &mut ChaCha8Rng) {
    if rate == 0.0 {
        return;
    }
    let (books, special) = (config.codebooks, config.special());
    let frames = sequence.inputs.len() / (sequence.batch * books);
    let begins = rate / ((1 + LONGEST_HOLD) as f32 / 2.0);
    for clip in sequence.inputs.chunks_exact_mut(books * frames) {
        let mut at = 1;
        while at < frames {
            if random::uniform(rng) >= begins {
                at += 1;
                continue;
            }
            let end = (at + 1 + random::below(rng, LONGEST_HOLD)).min(frames);
            for row in clip.chunks_exact_mut(frames) {
                let held = row[at - 1];
                row[at..end].iter_mut().filter(|code| **code != special && held != special).for_each(|c| *c = held);
            }
            at = end;
        }
    }
    sequence.listen_back(config);
}

/// Replaces each input code with probability `rate` by one drawn from the model's own `logits` for it, so that the model
/// learns to go on from what it would have said itself.
pub fn own(config: &LmConfig, sequence: &mut Sequence, logits: &Logits, rate: f32, rng: &mut ChaCha8Rng) {
    let (books, codes, special) = (config.codebooks, config.cardinality, config.special());
    let frames = sequence.inputs.len() / (sequence.batch * books);
    let plain = Sampling { top_p: 1.0, ..Sampling::default() };
    for (book, logits_nv) in logits.iter().enumerate() {
        let values = logits_nv.to_data().try_to_vec_as::<f32>().expect("logits are f32");
        for clip in 0..sequence.batch {
            let row = &mut sequence.inputs[(clip * books + book) * frames..][..frames];
            let predictions = values[clip * frames * codes..].chunks_exact(codes);
            // The logits of a column are for the code that the next column reads.
            for (code, logits) in row[1..].iter_mut().zip(predictions) {
                if random::uniform(rng) < rate && *code != special {
                    *code = plain.draw(0, logits, rng);
                }
            }
        }
    }
    sequence.listen_back(config);
}

/// Which clips of a batch go without their caption, and which of those without beat clock and echoes too: what guidance
/// leads away from must have been learned.
pub fn forget(clips: usize, caption: f32, beat: f32, rng: &mut ChaCha8Rng) -> Forgotten {
    let (mut without_caption, mut without_beat) = (Vec::with_capacity(clips), Vec::with_capacity(clips));
    for _ in 0..clips {
        // Drawn for every clip, so that one clip's luck does not depend on another's.
        let (first, second) = (random::uniform(rng) < caption, random::uniform(rng) < beat);
        without_caption.push(first);
        without_beat.push(first && second);
    }
    Forgotten { without_caption, without_beat }
}

/// What [`forget`] drew for each clip.
#[derive(Debug, Clone, PartialEq)]
pub struct Forgotten {
    /// The clip has the null text.
    pub without_caption: Vec<bool>,
    /// It has no beat clock either.
    pub without_beat: Vec<bool>,
}

/// The captions of a batch, the null text where `without` says so.
pub fn captions(config: &LmConfig, batch: &Batch, without: &[bool]) -> TextBatch {
    let (width, length) = (config.text_width, batch.text_length);
    let rows: Vec<Option<&[f32]>> = (without.iter().enumerate())
        .map(|(b, &without)| {
            let mask = &batch.text_mask_bl[b * length..(b + 1) * length];
            let count = mask.iter().filter(|&&value| value > 0.0).count();
            (!without).then(|| &batch.text_bld[b * length * width..][..count * width])
        })
        .collect();
    TextBatch::new(config, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tensor, TensorData};
    use mambo_model::backbone::{BackboneKind, ChannelMixer, SsmKind};
    use mambo_model::lm::{Head, Positions};

    fn config() -> LmConfig {
        LmConfig {
            codebooks: 2,
            delays: vec![0, 2],
            cardinality: 100,
            d_model: 8,
            layers: 1,
            backbone: BackboneKind::PrefixSimba,
            ssm: SsmKind::Mamba2,
            d_state: 4,
            head_dim: 4,
            groups: 1,
            expand: 2,
            chunk: 4,
            attention_head_dim: 4,
            channel_mixer: ChannelMixer::FeedForward,
            ff_multiple: 2,
            fft_blocks: 4,
            positions: Positions::None,
            final_norm: true,
            text_width: 1,
            null_tokens: 1,
            head: Head::Tied,
            codec_width: 0,
            same_again: false,
            beat_clock: true,
            echo_beats: vec![1],
            text_in_every_frame: false,
        }
    }

    fn batch() -> Batch {
        Batch {
            codes_bkt: vec![1, 2, 3, 4, 11, 12, 13, 14, 5, 6, 7, 0, 15, 16, 17, 0],
            clock_bt: vec![0, 100, 200, 300, 7, 7, 7, clock::NO_BEAT],
            lengths_b: vec![4, 3],
            text_bld: vec![0.5, 0.25, 0.75, 0.0],
            text_mask_bl: vec![1.0, 1.0, 1.0, 0.0],
            text_length: 2,
            captions_b: vec![String::new(); 2],
            tracks_b: vec![String::new(); 2],
            places_b: vec![(0, 0, 0); 2],
        }
    }

    #[test]
    fn targets_are_delayed_and_inputs_lag_by_one() {
        let sequence = arrange(&config(), &batch(), 21.5);
        let s = 100;
        assert_eq!(sequence.targets, [1, 2, 3, 4, s, s, 11, 12, 5, 6, 7, s, s, s, 15, 16]);
        assert_eq!(sequence.inputs, [s, 1, 2, 3, s, s, s, 11, s, 5, 6, 7, s, s, s, 15]);
        assert_eq!(sequence.clock, batch().clock_bt);
        // 100 ticks of 2048 a frame at 21.5 Hz are 63 beats a minute.
        assert_eq!(sequence.tempo, [clock::tempo_class(Some(63.0)), clock::tempo_class(Some(0.0))]);
    }

    #[test]
    fn corruption_spares_specials_and_stays_in_the_codebook() {
        let clean = arrange(&config(), &batch(), 21.5);
        let mut sequence = clean.clone();
        corrupt(&config(), &mut sequence, 0.9, &mut random::stream(1, "corrupt", 0));
        assert_eq!(sequence.targets, clean.targets);
        assert_ne!(sequence.inputs, clean.inputs);
        for (at, (&new, &old)) in sequence.inputs.iter().zip(&clean.inputs).enumerate() {
            assert_eq!(new == 100, old == 100);
            if old != 100 {
                assert_eq!(new > 10, at / 4 % 2 == 1, "codebook of {new} at {at}");
            }
        }
        let mut untouched = clean.clone();
        hold(&config(), &mut untouched, 0.0, &mut random::stream(1, "hold", 0));
        corrupt(&config(), &mut untouched, 0.0, &mut random::stream(1, "corrupt", 0));
        assert_eq!(untouched, clean);
    }

    #[test]
    fn clips_without_beat_are_some_of_those_without_caption() {
        let drawn = forget(4000, 0.3, 0.5, &mut random::stream(1, "caption", 0));
        let count = |which: &[bool]| which.iter().filter(|without| **without).count();
        assert!((1100..1300).contains(&count(&drawn.without_caption)), "{}", count(&drawn.without_caption));
        assert!((500..700).contains(&count(&drawn.without_beat)), "{}", count(&drawn.without_beat));
        let pairs = || drawn.without_beat.iter().zip(&drawn.without_caption);
        assert!(pairs().all(|(beat, caption)| *caption || !beat));
        let all = |caption, beat| forget(2, caption, beat, &mut random::stream(1, "caption", 0)).without_beat;
        assert_eq!((all(1.0, 1.0), all(1.0, 0.0), all(0.0, 1.0)), (vec![true; 2], vec![false; 2], vec![false; 2]));
    }

    #[test]
    fn a_silenced_clock_takes_the_echoes_along_and_leaves_the_other_clips() {
        let (clean, batch) = (arrange(&config(), &batch(), 21.5), batch());
        let mut sequence = clean.clone();
        sequence.silence_clock(&config(), &[true, false]);
        assert_eq!(sequence.clock[..4], [clock::NO_BEAT; 4]);
        assert_eq!(sequence.clock[4..], batch.clock_bt[4..]);
        assert!(sequence.echoes[..8].iter().all(|&code| code == 100));
        assert_eq!(sequence.echoes[8..], clean.echoes[8..]);
        assert_eq!((&sequence.inputs, &sequence.tempo), (&clean.inputs, &clean.tempo));
    }

    #[test]
    fn own_codes_are_what_the_column_before_predicts() {
        let clean = arrange(&config(), &batch(), 21.5);
        let (clips, frames, codes) = (2, 4, 100);
        // Every column of codebook k is sure of code 50 + 10 k + its frame.
        let logits: Vec<Tensor<2>> = (0..2)
            .map(|k| {
                let sure = |n: usize| 50 + 10 * k + n % frames;
                let value = |i: usize| if i % codes == sure(i / codes) { 50.0 } else { 0.0 };
                let values: Vec<f32> = (0..clips * frames * codes).map(value).collect();
                Tensor::from_data(TensorData::new(values, [clips * frames, codes]), &Device::flex())
            })
            .collect();
        let mut sequence = clean.clone();
        own(&config(), &mut sequence, &logits, 0.7, &mut random::stream(1, "own", 0));
        assert_eq!((&sequence.targets, &sequence.clock), (&clean.targets, &clean.clock));
        assert_ne!(sequence.inputs, clean.inputs);
        for (at, (&new, &old)) in sequence.inputs.iter().zip(&clean.inputs).enumerate() {
            let predicted = 50 + 10 * (at / frames % 2) + (at % frames).wrapping_sub(1);
            assert!(new == old || (old != 100 && usize::from(new) == predicted), "{new} at {at}");
        }
    }

    #[test]
    fn held_stretches_repeat_the_column_before_them_and_have_the_share_asked_for() {
        let frames = 20_000;
        let codes: Vec<u16> = (0..2 * frames).map(|i| (i % 97) as u16).collect();
        let batch = Batch {
            codes_bkt: codes,
            clock_bt: vec![clock::NO_BEAT; frames],
            lengths_b: vec![frames],
            text_bld: vec![0.5],
            text_mask_bl: vec![1.0],
            text_length: 1,
            captions_b: vec![String::new()],
            tracks_b: vec![String::new()],
            places_b: vec![(0, 0, 0)],
        };
        let clean = arrange(&config(), &batch, 21.5);
        let mut sequence = clean.clone();
        hold(&config(), &mut sequence, 0.2, &mut random::stream(1, "hold", 0));
        assert_eq!(sequence.targets, clean.targets);
        let mut changed = 0;
        for (row, before) in sequence.inputs.chunks_exact(frames).zip(clean.inputs.chunks_exact(frames)) {
            for at in 1..frames {
                if row[at] != before[at] {
                    assert_eq!(row[at], row[at - 1]);
                    changed += 1;
                }
            }
        }
        let share = f64::from(changed) / (2 * frames) as f64;
        assert!((0.15..0.25).contains(&share), "{share}");
    }
}
