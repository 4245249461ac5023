//! Sizes of an EnCodec, as its `config.json` names them.

use serde::Deserialize;

use crate::tokens::CodecSpec;

/// What a convolution finds beyond the ends of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PadMode {
    /// The clip itself, mirrored.
    Reflect,
    /// Zeros.
    Constant,
}

/// Sizes; other keys of the file say nothing about them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct EncodecConfig {
    /// Samples a second.
    pub sampling_rate: u32,
    /// Channels of the sound.
    pub audio_channels: usize,
    /// Channels of the first layer.
    pub num_filters: usize,
    /// Width of what is quantised.
    pub hidden_size: usize,
    /// Taps of the first layer.
    pub kernel_size: usize,
    /// Taps of the last layer.
    pub last_kernel_size: usize,
    /// Taps of the first convolution of a residual unit.
    pub residual_kernel_size: usize,
    /// Dilation of a unit over that of the one before.
    pub dilation_growth_rate: usize,
    /// Residual units a block.
    pub num_residual_layers: usize,
    /// How much narrower a unit is inside.
    pub compress: usize,
    /// Layers of long short-term memory.
    pub num_lstm_layers: usize,
    /// Strides of the decoder's blocks; the encoder has them in reverse.
    pub upsampling_ratios: Vec<usize>,
    /// Codes a level.
    pub codebook_size: usize,
    /// Width of a codebook's rows.
    #[serde(default)]
    pub codebook_dim: Option<usize>,
    /// What lies beyond the ends.
    pub pad_mode: PadMode,
    /// Kilobits a second; the last says how many levels there are.
    pub target_bandwidths: Vec<f64>,
    /// Whether layers look back only.
    pub use_causal_conv: bool,
    /// Whether loudness is taken off first.
    pub normalize: bool,
    /// How weights are stored.
    pub norm_type: String,
    /// Whether a unit's input goes through a convolution of its own.
    pub use_conv_shortcut: bool,
}

impl EncodecConfig {
    /// Samples a token.
    pub fn hop(&self) -> usize {
        self.upsampling_ratios.iter().product()
    }

    /// Levels: as many as the highest bandwidth pays for.
    pub fn levels(&self) -> usize {
        let frames = self.sampling_rate.div_ceil(self.hop() as u32);
        let most = self.target_bandwidths.last().copied().unwrap_or(0.0);
        let bits = self.codebook_size.next_power_of_two().ilog2();
        (1000.0 * most / (f64::from(frames) * f64::from(bits))) as usize
    }

    /// What the tokens mean.
    pub fn spec(&self) -> CodecSpec {
        CodecSpec {
            name: "encodec".into(),
            sample_rate: self.sampling_rate,
            hop: self.hop() as u32,
            levels: self.levels(),
            cardinality: self.codebook_size,
        }
    }

    /// The rule that a configuration breaks, if any.
    pub fn broken_rule(&self) -> Option<&'static str> {
        let ratios = &self.upsampling_ratios;
        let sane = |size: usize| (1..=4096).contains(&size);
        let few = |size: usize| (1..=64).contains(&size);
        let rules = [
            (self.audio_channels == 1, "audio_channels: only mono is supported"),
            (!self.use_causal_conv, "use_causal_conv: only layers that look both ways are supported"),
            (!self.normalize, "normalize: only codecs that leave the loudness alone are supported"),
            (self.norm_type == "weight_norm", "norm_type: only weight_norm is supported"),
            (!self.use_conv_shortcut, "use_conv_shortcut: only true skips are supported"),
            (
                (1..=8).contains(&ratios.len()) && ratios.iter().all(|ratio| few(*ratio)),
                "upsampling_ratios: 1 to 8 strides of 1 to 64",
            ),
            ((1..=384_000).contains(&self.sampling_rate), "sampling_rate must be 1 to 384000"),
            (sane(self.num_filters) && sane(self.hidden_size), "num_filters and hidden_size must be 1 to 4096"),
            (
                [self.kernel_size, self.last_kernel_size, self.residual_kernel_size].into_iter().all(few),
                "kernel sizes must be 1 to 64",
            ),
            (
                few(self.num_residual_layers) && few(self.dilation_growth_rate) && self.num_lstm_layers <= 64,
                "num_residual_layers, dilation_growth_rate and num_lstm_layers must be at most 64",
            ),
            (
                few(self.compress) && self.num_filters.is_multiple_of(self.compress.max(1)),
                "compress must divide num_filters",
            ),
            (self.codebook_dim.is_none_or(|dim| dim == self.hidden_size), "codebook_dim must be hidden_size"),
            ((2..=65_535).contains(&self.codebook_size), "codebook_size must be 2 to 65535"),
        ];
        if let Some((_, rule)) = rules.iter().find(|(holds, _)| !holds) {
            return Some(rule);
        }
        let fits = self.hop() <= 1 << 20 && (1..=64).contains(&self.levels());
        (!fits).then_some("target_bandwidths: the last must pay for 1 to 64 levels")
    }
}
