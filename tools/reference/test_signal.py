"""The deterministic test signal, written once here and once in the Rust tests.

Four parts of three seconds at 16 kHz: plucked harmonics, noise bursts with a low drum,
a pair of rising and falling chirps, and very quiet noise. Noise comes from an integer hash.
"""

import numpy as np

RATE = 16_000
SECONDS = 12


def hash_noise(count):
    """Noise in [-1, 1): an integer hash of the sample index."""
    with np.errstate(over="ignore"):
        value = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1)
        value ^= value >> np.uint32(15)
        value *= np.uint32(0x85EBCA77)
        value ^= value >> np.uint32(13)
        value *= np.uint32(0xC2B2AE3D)
        value ^= value >> np.uint32(16)
    return value.astype(np.float64) / 2147483648.0 - 1.0


def signal():
    """The signal as f32 samples."""
    count = RATE * SECONDS
    index = np.arange(count)
    noise = hash_noise(count)
    out = np.zeros(count)
    part = index // (3 * RATE)
    time = (index % (3 * RATE)) / RATE
    turn = 2.0 * np.pi

    beat = np.floor(time * 4.0)
    since = time - beat / 4.0
    pitch = 220.0 * np.array([1.0, 1.25, 1.5, 2.0])[beat.astype(int) % 4]
    pluck = sum(np.sin(turn * pitch * h * since) / h for h in range(1, 7)) * np.exp(-6.0 * since)
    out += np.where(part == 0, 0.3 * pluck, 0.0)

    beat = np.floor(time * 2.0)
    since = time - beat / 2.0
    drum = 0.5 * np.sin(turn * 60.0 * since) * np.exp(-10.0 * since) + 0.4 * noise * np.exp(-30.0 * since)
    out += np.where(part == 1, drum, 0.0)

    rising = np.sin(turn * (100.0 * time + 900.0 * time * time))
    falling = np.sin(turn * (6000.0 * time - 800.0 * time * time))
    out += np.where(part == 2, 0.3 * rising + 0.2 * falling + 0.01 * noise, 0.0)

    out += np.where(part == 3, 1e-3 * noise, 0.0)
    return out.astype(np.float32)
