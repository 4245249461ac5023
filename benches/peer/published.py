#!/usr/bin/env python3
"""How long transformers takes for the published models at full size on the CPU.

    python3 benches/peer/published.py FOLDER [PART]... [--threads 2]

The other side of `cargo run --release -p mambo-model --example published_speed`; FOLDER is what tools/soak/published.py wrote.
Parts: dac, t5, musicgen. Weights are f32 and nothing is compiled or quantised on either side.
"""
import argparse
import pathlib
import statistics
import time

import torch
from transformers import DacModel, DynamicCache, EncoderDecoderCache, MusicgenForConditionalGeneration, T5EncoderModel

RUNS, SECONDS, RATE = 5, 10, 44100
FRAMES = range(100, 150)


def report(name, times):
    print(f'{name:<24} median {1e3 * statistics.median(times):9.2f} ms, least {1e3 * min(times):9.2f} ms', flush=True)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def timed(name, runs, work):
    """After one that does not count."""
    work()
    report(name, [seconds(work) for _ in range(runs)])


def dac(folder):
    model = DacModel.from_pretrained(folder).eval()
    length = -(-SECONDS * RATE // 512) * 512
    clip = 0.5 * torch.sin(0.05 * torch.arange(length))[None, None]
    clip[..., SECONDS * RATE:] = 0
    timed(f'dac encode {SECONDS} s', RUNS, lambda: model.encode(clip))
    codes = model.encode(clip).audio_codes
    timed(f'dac decode {SECONDS} s', RUNS, lambda: model.decode(audio_codes=codes))


def t5(folder):
    model = T5EncoderModel.from_pretrained(folder).eval()
    for length in (16, 64, 512):
        ids = (3 + torch.arange(length) * 61 % 30000)[None]
        timed(f't5-base {length} tokens', 4 * RUNS, lambda: model(input_ids=ids))


def musicgen(folder):
    model = MusicgenForConditionalGeneration.from_pretrained(folder).eval()
    ids = (3 + torch.arange(16) * 61)[None]
    told = model.enc_to_dec_proj(model.text_encoder(input_ids=ids).last_hidden_state)
    heard = torch.cat([told, torch.zeros_like(told)])
    mask = torch.stack([torch.ones(16), torch.zeros(16)]).long()
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def step(frame):
        column = (frame * 37 + torch.arange(4) * 101) % 2048
        return seconds(lambda: model.decoder(input_ids=column.repeat(2)[:, None], encoder_hidden_states=heard,
                                             encoder_attention_mask=mask, past_key_values=cache, use_cache=True))

    for frame in range(FRAMES.start):
        step(frame)
    report('musicgen-small step', [step(frame) for frame in FRAMES])


def main():
    parts = {'dac': dac, 't5': t5, 'musicgen': musicgen}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=pathlib.Path)
    parser.add_argument('parts', nargs='*', help='default: all')
    parser.add_argument('--threads', type=int, default=2, help='default 2')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads')
    with torch.inference_mode():
        for part in options.parts or parts:
            parts[part](options.folder / part)


if __name__ == '__main__':
    main()
