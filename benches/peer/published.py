#!/usr/bin/env python3
"""How long transformers takes for the published models at full size on the CPU.

    python3 benches/peer/published.py FOLDER [PART]... [--seconds 10] [--threads 2]

The other side of `cargo run --release -p mambo-model --example published_speed`; FOLDER is what tools/soak/published.py wrote.
Parts: dac, t5, musicgen. Weights are f32 and nothing is compiled or quantised on either side.
"""
import argparse
import pathlib
import statistics
import time

import torch
from transformers import DacModel, DynamicCache, EncoderDecoderCache, MusicgenForConditionalGeneration, T5EncoderModel

RUNS, RATE = 5, 44100
FRAMES = range(100, 150)


def report(name, times, began):
    """`computed` counts all threads, those that wait awake for others too."""
    computed = (time.process_time() - began) / len(times)
    print(f'{name:<24} median {1e3 * statistics.median(times):9.2f} ms, least {1e3 * min(times):9.2f} ms, '
          f'computed {1e3 * computed:9.2f} ms', flush=True)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def timed(name, runs, work):
    """After one that does not count."""
    work()
    began = time.process_time()
    report(name, [seconds(work) for _ in range(runs)], began)


def dac(folder, length):
    model = DacModel.from_pretrained(folder).eval()
    clip = 0.5 * torch.sin(0.05 * torch.arange(length * RATE))[None, None]
    clip = torch.nn.functional.pad(clip, (0, -clip.shape[-1] % 512))
    timed(f'dac encode {length} s', RUNS, lambda: model.encode(clip))
    codes = model.encode(clip).audio_codes
    timed(f'dac decode {length} s', RUNS, lambda: model.decode(audio_codes=codes))


def t5(folder, _):
    model = T5EncoderModel.from_pretrained(folder).eval()
    for length in (16, 64, 512):
        ids = (3 + torch.arange(length) * 61 % 30000)[None]
        timed(f't5-base {length} tokens', 4 * RUNS, lambda: model(input_ids=ids))


def musicgen(folder, _):
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
    began = time.process_time()
    report('musicgen-small step', [step(frame) for frame in FRAMES], began)


def main():
    parts = {'dac': dac, 't5': t5, 'musicgen': musicgen}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=pathlib.Path)
    parser.add_argument('parts', nargs='*', help='default: all')
    parser.add_argument('--seconds', type=int, default=10, help='of sound; default 10')
    parser.add_argument('--threads', type=int, default=2, help='default 2')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads')
    with torch.inference_mode():
        for part in options.parts or parts:
            parts[part](options.folder / part, options.seconds)


if __name__ == '__main__':
    main()
