//! Spectra: short-time Fourier transform, mel filterbank, and sound from magnitudes alone.
//!
//! Convention (that of librosa): frame `t` is centred on sample `t * hop`; a signal of `n` samples has
//! `1 + n / hop` frames; the window is a periodic Hann window. Frames run in parallel, each on its own,
//! so the bytes of every result are the same whatever the number of threads.

mod griffin_lim;
mod mel;
mod phase_start;
mod stft;
mod stream;

pub use griffin_lim::GriffinLim;
pub use mel::{MelFilterbank, hz_to_mel, mel_filterbank, mel_to_hz};
pub use realfft::num_complex::Complex;
pub use stft::{ComplexSpectrogram, Padding, Spectrogram, Stft, hann_window};
pub use stream::GriffinLimStream;
