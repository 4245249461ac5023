//! Sizes of a DAC, as its `config.json` names them.

use serde::{Deserialize, Serialize};

use crate::tokens::CodecSpec;

/// Most blocks of encoder and decoder; the published models have four.
pub(super) const MOST_BLOCKS: usize = 8;
/// Most samples a token: 1.5 seconds at 44.1 kHz, where the published models have 512.
const MOST_HOP: usize = 1 << 16;

/// Sizes. The file of Hugging Face's `descript/dac_44khz` has these keys and others, which say nothing about sizes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DacConfig {
    /// Channels of the encoder's first layer; they double with every block.
    pub encoder_hidden_size: usize,
    /// Stride of each block of the encoder.
    pub downsampling_ratios: Vec<usize>,
    /// Channels of the decoder's first layer; they halve with every block.
    pub decoder_hidden_size: usize,
    /// Stride of each block of the decoder.
    pub upsampling_ratios: Vec<usize>,
    /// Levels.
    pub n_codebooks: usize,
    /// Codes a level.
    pub codebook_size: usize,
    /// Width of a codebook's rows.
    pub codebook_dim: usize,
    /// Samples a second.
    pub sampling_rate: u32,
}

impl Default for DacConfig {
    /// 44.1 kHz at 8 kbit/s (Kumar et al., arXiv:2306.06546): the model that the papers use.
    fn default() -> Self {
        Self {
            encoder_hidden_size: 64,
            downsampling_ratios: vec![2, 4, 8, 8],
            decoder_hidden_size: 1536,
            upsampling_ratios: vec![8, 8, 4, 2],
            n_codebooks: 9,
            codebook_size: 1024,
            codebook_dim: 8,
            sampling_rate: 44_100,
        }
    }
}

impl DacConfig {
    /// Samples a token.
    pub fn hop(&self) -> usize {
        self.downsampling_ratios.iter().product()
    }

    fn hop_within(&self, most: usize) -> bool {
        let hop = self.downsampling_ratios.iter().try_fold(1usize, |a, b| a.checked_mul(*b));
        hop.is_some_and(|hop| hop <= most)
    }

    /// Width of what the encoder gives and the decoder takes.
    pub fn latent(&self) -> usize {
        self.encoder_hidden_size << self.downsampling_ratios.len()
    }

    /// What the tokens mean.
    pub fn spec(&self) -> CodecSpec {
        CodecSpec {
            name: "dac".into(),
            sample_rate: self.sampling_rate,
            hop: self.hop() as u32,
            levels: self.n_codebooks,
            cardinality: self.codebook_size,
        }
    }

    /// The rule that a configuration breaks, if any.
    pub fn broken_rule(&self) -> Option<&'static str> {
        let ratios = |ratios: &[usize]| {
            (1..=MOST_BLOCKS).contains(&ratios.len())
                && ratios.iter().all(|ratio| (2..=64).contains(ratio) && ratio.is_multiple_of(2))
        };
        let halves = 1usize << self.upsampling_ratios.len().min(MOST_BLOCKS);
        let rules = [
            (ratios(&self.downsampling_ratios), "downsampling_ratios: 1 to 8 even strides of 2 to 64"),
            (ratios(&self.upsampling_ratios), "upsampling_ratios: 1 to 8 even strides of 2 to 64"),
            (
                self.upsampling_ratios.iter().try_fold(1usize, |a, b| a.checked_mul(*b))
                    == self.downsampling_ratios.iter().try_fold(1usize, |a, b| a.checked_mul(*b)),
                "upsampling_ratios must undo downsampling_ratios",
            ),
            (self.hop_within(MOST_HOP), "downsampling_ratios must give at most 65536 samples a token"),
            ((1..=1024).contains(&self.encoder_hidden_size), "encoder_hidden_size must be 1 to 1024"),
            (
                (1..=1 << 14).contains(&self.decoder_hidden_size) && self.decoder_hidden_size.is_multiple_of(halves),
                "decoder_hidden_size must be at most 16384 and halve with every stride",
            ),
            ((1..=64).contains(&self.n_codebooks), "n_codebooks must be 1 to 64"),
            ((2..=65_535).contains(&self.codebook_size), "codebook_size must be 2 to 65535"),
            ((1..=1024).contains(&self.codebook_dim), "codebook_dim must be 1 to 1024"),
            ((1..=384_000).contains(&self.sampling_rate), "sampling_rate must be 1 to 384000"),
        ];
        rules.iter().find(|(holds, _)| !holds).map(|(_, rule)| *rule)
    }
}
