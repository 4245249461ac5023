"""Golden numbers for crates/audio/tests/golden/mel.json: Slaney's mel filterbank and an STFT, by numpy alone.

Made with Python 3 and numpy (version written into the file). Run: python3 tools/reference/mel.py > crates/audio/tests/golden/mel.json

The filterbank is built from its definition (Auditory Toolbox, Slaney 1998): mels of 66 2/3 Hz below 1 kHz, above it 27
mels for each factor of 6.4; triangles between three neighbouring points, of unit area in Hz.
"""

import json

import numpy as np


def hz_of_mel(mel):
    mel = np.asarray(mel, dtype=np.float64)
    linear = mel * 200.0 / 3.0
    return np.where(mel < 15.0, linear, 1000.0 * 6.4 ** ((mel - 15.0) / 27.0))


def mel_of_hz(hz):
    # By bisection on the inverse, so that it shares no formula with it.
    low, high = 0.0, 200.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if float(hz_of_mel(middle)) < hz:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def filterbank(rate, n_fft, bands, low, high):
    points = hz_of_mel(np.linspace(mel_of_hz(low), mel_of_hz(high), bands + 2))
    hz = np.arange(n_fft // 2 + 1) * rate / n_fft
    rows = []
    for left, centre, right in zip(points, points[1:], points[2:]):
        rows.append(np.interp(hz, [left, centre, right], [0.0, 2.0 / (right - left), 0.0], left=0.0, right=0.0))
    return np.array(rows)


def main():
    banks = []
    for rate, n_fft, bands, low, high in [
        (44100, 2048, 128, 0.0, 22050.0),
        (16000, 512, 96, 0.0, 8000.0),
        (22050, 1024, 40, 50.0, 9000.0),
    ]:
        matrix = filterbank(rate, n_fft, bands, low, high)
        band, bin_ = np.nonzero(matrix)
        pick = np.linspace(0, len(band) - 1, 60).astype(int)
        banks.append(
            {
                "rate": rate,
                "n_fft": n_fft,
                "bands": bands,
                "low": low,
                "high": high,
                "non_zero": len(band),
                "sums": [float(f"{value:.9e}") for value in matrix.sum(axis=1)],
                "samples": [[int(band[i]), int(bin_[i]), float(f"{matrix[band[i], bin_[i]]:.9e}")] for i in pick],
            }
        )
    n_fft, hop, n = 1024, 256, 6000
    t = np.arange(n)
    signal = 0.6 * np.sin(0.03 * t + 1e-5 * t * t) + 0.2 * np.cos(0.9 * t)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    values = []
    for mode in ["constant", "reflect"]:
        padded = np.pad(signal, n_fft // 2, mode=mode)
        frames = [np.fft.rfft(window * padded[s : s + n_fft]) for s in range(0, n + 1, hop)]
        for frame, bin_ in [(0, 0), (0, 5), (1, 6), (7, 8), (12, 147), (len(frames) - 1, 10), (len(frames) - 1, 512)]:
            value = frames[frame][bin_]
            values.append([mode, frame, bin_, float(f"{value.real:.8e}"), float(f"{value.imag:.8e}")])
    stft = {"window": n_fft, "hop": hop, "samples": n, "frames": n // hop + 1, "values": values}
    print(json.dumps({"numpy": np.__version__, "banks": banks, "stft": stft}))


main()
