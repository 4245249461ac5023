"""Reference musicnn in float64 numpy, and the golden values of the Rust tests.

    python musicnn.py musicnn-0.1.0-py3-none-any.whl --models ../../models/tiny/tagger \\
        --golden ../../crates/model/tests/golden/musicnn.safetensors

Written from the description of the network (convolution, bias, ReLU, then batch
normalisation; tensors stay in the published HWIO layout), for clarity and not for speed.
Golden values come twice: from the published f32 weights and from the shipped file.
"""

import argparse
import pathlib

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import convert_musicnn
import tensor_file
import test_signal

RATE, WINDOW, HOP, MELS, PATCH = 16_000, 512, 256, 96, 187


def hertz_to_mel(hertz):
    """Slaney's scale: linear below 1 kHz (200/3 Hz a mel), logarithmic above."""
    hertz = np.asarray(hertz, dtype=np.float64)
    high = 15.0 + np.log(np.maximum(hertz, 1e-9) / 1000.0) / (np.log(6.4) / 27.0)
    return np.where(hertz < 1000.0, hertz * 3.0 / 200.0, high)


def mel_to_hertz(mel):
    mel = np.asarray(mel, dtype=np.float64)
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))


def mel_filters():
    """Triangles of unit area (Slaney), [MELS, WINDOW/2+1]."""
    edges = mel_to_hertz(np.linspace(hertz_to_mel(0.0), hertz_to_mel(RATE / 2), MELS + 2))
    bins = np.fft.rfftfreq(WINDOW, 1.0 / RATE)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangle = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    return np.maximum(triangle, 0.0) * 2.0 / (high - low)


def log_mel(samples):
    """log10(10000 mel + 1), [frames, MELS], from 16 kHz samples."""
    padded = np.pad(samples.astype(np.float64), WINDOW // 2, mode="reflect")
    frames = sliding_window_view(padded, WINDOW)[::HOP]
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return np.log10(10000.0 * power @ mel_filters().T + 1.0)


class Published:
    """Layers on the published tensors."""

    def __init__(self, network):
        self.tensors = {name: array.astype(np.float64) for name, array in network.items()}

    def kernel(self, layer):
        return self.tensors[f"{layer}/kernel"], self.tensors[f"{layer}/bias"]

    def normalise(self, layer, x):
        part = [self.tensors[f"{layer}/{name}"] for name in ("gamma", "beta", "moving_mean", "moving_variance")]
        gamma, beta, mean, variance = part
        return gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta


class Shipped(Published):
    """Layers on a converted file."""

    def normalise(self, layer, x):
        return x * self.tensors[f"{layer}/scale"] + self.tensors[f"{layer}/shift"]


def relu(x):
    return np.maximum(x, 0.0)


def convolve(x, kernel, bias):
    """Valid convolution of x [time, frequency] with HWIO kernel [kt, kf, 1, out]."""
    windows = sliding_window_view(x, kernel.shape[:2])
    return np.tensordot(windows, kernel[:, :, 0, :], axes=([2, 3], [0, 1])) + bias


def forward(net, patch):
    """Tags [50] and penultimate features [200] of one patch [187, 96]."""
    x = net.normalise("batch_normalization", patch)
    padded = np.pad(x, ((3, 3), (0, 0)))
    front = []
    for number, layer in enumerate(["conv2d", "conv2d_1"], start=1):
        y = net.normalise(f"batch_normalization_{number}", relu(convolve(padded, *net.kernel(layer))))
        front.append(y.max(axis=1))
    for number, layer in enumerate(["conv2d_2", "conv2d_3", "conv2d_4"], start=3):
        kernel, bias = net.kernel(layer)
        length = kernel.shape[0]
        before = (length - 1) // 2
        same = np.pad(x, ((before, length - 1 - before), (0, 0)))
        y = net.normalise(f"batch_normalization_{number}", relu(convolve(same, kernel, bias)))
        front.append(y.max(axis=1))
    front = np.concatenate(front, axis=1)

    outputs, y = [front], front
    for number, layer in enumerate(["conv2d_5", "conv2d_6", "conv2d_7"], start=6):
        z = convolve(np.pad(y, ((3, 3), (0, 0))), *net.kernel(layer))[:, 0, :]
        z = net.normalise(f"batch_normalization_{number}", relu(z))
        y = z if number == 6 else z + y
        outputs.append(y)
    x = np.concatenate(outputs, axis=1)

    pooled = np.stack([x.max(axis=0), x.mean(axis=0)], axis=1).reshape(-1)
    pooled = net.normalise("batch_normalization_9", pooled)
    kernel, bias = net.kernel("dense")
    features = net.normalise("batch_normalization_10", relu(pooled @ kernel + bias))
    kernel, bias = net.kernel("dense_1")
    return 1.0 / (1.0 + np.exp(-(features @ kernel + bias))), features


def analyse(net, mel):
    """Tags [P, 50] and features [P, 200] of consecutive patches; the tail is dropped."""
    starts = range(0, len(mel) - PATCH + 1, PATCH)
    results = [forward(net, mel[start : start + PATCH]) for start in starts]
    return np.stack([r[0] for r in results]), np.stack([r[1] for r in results])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel")
    parser.add_argument("--models", required=True, type=pathlib.Path)
    parser.add_argument("--golden", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    samples = test_signal.signal()
    mel = log_mel(samples)
    golden = {"log_mel": mel[::25].astype(np.float32), "samples": samples[::997].copy()}
    for model, name in (("MTT_musicnn", "mtt"), ("MSD_musicnn", "msd")):
        network, _ = convert_musicnn.read_model(arguments.wheel, model)
        shipped, _ = tensor_file.read(arguments.models / f"{name}.safetensors")
        labels = convert_musicnn.read_labels(arguments.wheel, model)
        tags, features = analyse(Published(network), mel)
        shipped_tags, shipped_features = analyse(Shipped(shipped), mel)
        for key, value in (("tags", tags), ("features", features), ("shipped_tags", shipped_tags), ("shipped_features", shipped_features)):
            golden[f"{name}.{key}"] = value.astype(np.float32)
        distance = np.linalg.norm(features - shipped_features) / np.linalg.norm(features)
        print(f"{model}: f16 changes tags by at most {np.abs(tags - shipped_tags).max():.2e}, features by {distance:.2e} (relative)")
        for row in tags:
            print("   ", ", ".join(f"{labels[i]} {row[i]:.2f}" for i in np.argsort(-row)[:5]))
    metadata = {"made_by": "tools/reference/musicnn.py", "numpy": np.__version__}
    arguments.golden.parent.mkdir(parents=True, exist_ok=True)
    tensor_file.write(arguments.golden, golden, metadata)


if __name__ == "__main__":
    main()
