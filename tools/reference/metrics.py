"""Golden values for crates/eval: distances computed independently with numpy and scipy.

    python tools/reference/metrics.py > crates/eval/tests/golden/metrics.json

Signals and matrices come from the linear congruential generator below, which the test repeats, so the file holds
results only.
"""

import json
import platform

import numpy as np
import scipy
from scipy import linalg, stats


def noise(count, state):
    """Values in [-1, 1), the same as `noise` in crates/eval/tests/golden.rs."""
    out = np.empty(count, dtype=np.float32)
    for n in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        out[n] = np.float32(state >> 8) / np.float32(2**23) - np.float32(1.0)
    return out


def matrix(rows, width, seed, shift, scale, mix):
    """Rows of noise; each column leans on the one before it by `mix`."""
    values = noise(rows * width, seed).reshape(rows, width).astype(np.float64)
    for column in range(1, width):
        values[:, column] += mix * values[:, column - 1]
    return (np.float32(shift) + np.float32(scale) * values.astype(np.float32)).astype(np.float64)


def frechet(a, b):
    sigma_a, sigma_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(sigma_a @ sigma_b)
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(sigma_a) + np.trace(sigma_b) - 2 * np.trace(root).real)


def frechet_by_eigenvalues(a, b):
    """For singular covariances, where sqrtm of the product is unreliable."""
    sigma_a, sigma_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    eigenvalues = linalg.eigvals(sigma_a @ sigma_b)
    shift = a.mean(0) - b.mean(0)
    cross = np.sqrt(np.clip(eigenvalues.real, 0, None)).sum()
    return float(shift @ shift + np.trace(sigma_a) + np.trace(sigma_b) - 2 * cross)


def clip_distribution(tags):
    p = np.clip(tags, 1e-7, 1 - 1e-7)
    logits = np.log(p / (1 - p)).mean(0)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def kl(p, q):
    return float((p * (np.log(p) - np.log(q + 1e-6))).sum())


def hz_to_mel(hz):
    hz = np.asarray(hz, dtype=np.float64)
    return np.where(hz < 1000, hz * 3 / 200, 15 + np.log(np.maximum(hz, 1e-9) / 1000) * 27 / np.log(6.4))


def mel_to_hz(mel):
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def mel_matrix(rate, window, bands):
    edges = mel_to_hz(np.linspace(hz_to_mel(0), hz_to_mel(rate / 2), bands + 2))
    bins = np.arange(window // 2 + 1) * rate / window
    matrix = np.zeros((bands, len(bins)))
    for band in range(bands):
        left, centre, right = edges[band : band + 3]
        triangle = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
        matrix[band] = np.maximum(triangle, 0) * 2 / (right - left)
    return matrix


def log_mel(samples, rate, window, bands):
    hop = window // 4
    padded = np.pad(samples.astype(np.float64), window // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    count = 1 + len(samples) // hop
    frames = np.stack([padded[t * hop : t * hop + window] * hann for t in range(count)])
    magnitudes = np.abs(np.fft.rfft(frames, axis=1))
    return np.log10(np.maximum(magnitudes @ mel_matrix(rate, window, bands).T, 1e-5))


def mel_distance(a, b, rate):
    scales = [(32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320)]
    return float(sum(np.abs(log_mel(a, rate, w, m) - log_mel(b, rate, w, m)).mean() for w, m in scales))


def tone(count, rate):
    n = np.arange(count, dtype=np.float64)
    return (0.4 * np.sin(2 * np.pi * 440 * n / rate) + 0.2 * np.sin(2 * np.pi * 3000 * n / rate)).astype(np.float32)


def main():
    a, b = matrix(40, 6, 1, 0.0, 1.0, 0.5), matrix(70, 6, 2, 0.3, 1.5, -0.4)
    wide_a, wide_b = matrix(8, 12, 3, 0.0, 1.0, 0.2), matrix(9, 12, 4, 0.1, 0.7, 0.0)
    tags_a = (noise(30, 5).reshape(3, 10).astype(np.float64) + 1) / 2
    tags_b = (noise(40, 6).reshape(4, 10).astype(np.float64) + 1) / 2
    p, q = clip_distribution(tags_a), clip_distribution(tags_b)
    rate, count = 44100, 20000
    clean, hiss = tone(count, rate), noise(count, 7)
    values = {
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "frechet": frechet(a, b),
        "frechet_fewer_rows_than_columns": frechet_by_eigenvalues(wide_a, wide_b),
        "kl_a_b": kl(p, q),
        "kl_b_a": kl(q, p),
        "distribution_a": p.tolist(),
        "mel_distance_hiss": mel_distance(clean, clean + np.float32(0.01) * hiss, rate),
        "mel_distance_noise": mel_distance(clean, hiss, rate),
        "wasserstein": float(stats.wasserstein_distance(noise(13, 8).astype(float), 0.5 + noise(29, 9).astype(float))),
    }
    print(json.dumps(values, indent=2))


main()
