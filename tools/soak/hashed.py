"""Weights from an integer hash, written a second time in crates/model/examples/published_parity.rs; and a piece of music.

A value depends on its tensor's name and its place in it alone: both sides have the same weights without sharing a file, and
the Rust side proves it by making them again.
"""

import json
import math
import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "reference"))
import tensor_file  # noqa: E402

CHUNK = 1 << 24


def mixed(x):
    """Every bit of a u32 over all others."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x85EBCA6B)
    x = x ^ (x >> np.uint32(13))
    x = x * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def seed(name):
    """FNV-1a of the name."""
    value = 0x811C9DC5
    for byte in name.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return np.uint32(value)


def integers(name, first, count):
    """u32 values of the places from `first` on."""
    places = np.arange(first, first + count, dtype=np.uint64).astype(np.uint32)
    return mixed(mixed(places) ^ seed(name))


def values(name, shape, base, scale):
    """base + scale * u, u in [-1, 1) of 24 bits, rounded to f32 after each operation."""
    count = math.prod(shape)
    out = np.empty(count, np.float32)
    for first in range(0, count, CHUNK):
        part = integers(name, first, min(CHUNK, count - first))
        unit = (part >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
        out[first : first + len(part)] = np.float32(base) + np.float32(scale) * unit
    return out.reshape(shape)


class Weights:
    """Fills a model's parameters and remembers how."""

    def __init__(self, model):
        self.parameters = dict(model.named_parameters())
        self.recipes = {}

    def set(self, name, base, scale):
        """One tensor from its hash."""
        base, scale = float(np.float32(base)), float(np.float32(scale))
        self.recipes[name] = [base, scale]
        parameter = self.parameters[name]
        parameter.copy_(torch.from_numpy(values(name, tuple(parameter.shape), base, scale)))

    def fill(self, recipe):
        """All tensors for which `recipe(name, shape)` gives base and deviation (the hash is uniform: scale it by sqrt 3)."""
        for name, parameter in self.parameters.items():
            base, deviation = recipe(name, tuple(parameter.shape))
            self.set(name, base, deviation * math.sqrt(3))


def save(folder, results, recipes):
    """expected.safetensors; recipes only of what the published file has under the same name."""
    header = (folder / "model.safetensors").open("rb")
    length = int.from_bytes(header.read(8), "little")
    stored = json.loads(header.read(length))
    kept = {name: recipe for name, recipe in recipes.items() if name in stored}
    left_out = sorted(set(recipes) - set(kept))
    hashed = sum(math.prod(stored[name]["shape"]) for name in kept)
    total = sum(math.prod(entry["shape"]) for name, entry in stored.items() if name != "__metadata__")
    print(f"{hashed} of {total} stored values come from the hash; tensors stored under other names: {left_out}")
    note = {"recipes": json.dumps(kept), "torch": torch.__version__}
    arrays = {name: np.ascontiguousarray(value) for name, value in results.items()}
    tensor_file.write(folder / "expected.safetensors", arrays, note)


def music(seconds, rate):
    """Chords of decaying partials, a bass, a kick and a hi-hat at 120 beats a minute; peak 0.9, f32."""
    count = round(seconds * rate)
    out = np.zeros(count)
    draw = np.random.default_rng(12)

    def add(at, tone):
        first = round(at * rate)
        tone = tone[: max(0, count - first)]
        out[first : first + len(tone)] += tone

    def note(pitch, length, partials, decay, level):
        t = np.arange(round(length * rate)) / rate
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        parts = [math.cos(3 * n) * np.sin(2 * math.pi * n * frequency * t + n) / n**1.2 for n in range(1, partials + 1)
                 if n * frequency < rate / 2]
        return level * sum(parts) * np.exp(-decay * t) * np.minimum(1, 200 * t)

    chords = [[57, 60, 64], [53, 57, 60, 65], [48, 55, 64], [55, 59, 62, 67]]
    for beat in range(math.ceil(2 * seconds)):
        chord = chords[beat // 4 % len(chords)]
        add(beat / 2, note(chord[0] - 24, 0.5, 12, 4, 0.5))
        for pitch in chord:
            add(beat / 2 + draw.uniform(0, 0.02), note(pitch + 12 * int(draw.integers(0, 2)), 1.5, 20, draw.uniform(1, 6), draw.uniform(0.05, 0.2)))
        add(beat / 2 + 0.25, note(chord[int(draw.integers(len(chord)))] + 24, 0.4, 9, 5, draw.uniform(0, 0.25)))
        t = np.arange(round(0.2 * rate)) / rate
        add(beat / 2, 0.6 * np.sin(2 * math.pi * (50 * t + 6 * (1 - np.exp(-30 * t)))) * np.exp(-14 * t))
        for half in (0, 0.25):
            add(beat / 2 + half, draw.uniform(0.05, 0.25) * draw.standard_normal(len(t)) * np.exp(-draw.uniform(20, 60) * t))
    return (0.9 * out / np.abs(out).max()).astype(np.float32)
