#!/usr/bin/env python3
"""A Mamba-2 or SiMBA language model in plain PyTorch: how long a training step takes, and a decoded frame.

The other side of `cargo run --release -p mambo-model --example train_step`; run both on the same cores one after the
other and compare. Training uses the chunked form of state-space duality (Dao and Gu, arXiv:2405.21060, section 6),
decoding the recurrence; before anything is timed one must give the other's logits. Needs only torch:

    python3 benches/peer/mamba2_step.py --threads 2
    python3 benches/peer/mamba2_step.py --threads 2 --ff --layers 6 --d-model 1024 --d-state 512 --batch 1 \\
        --length 2560 --chunk 256
"""
import argparse
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

TAPS = 4
EXPAND = 2
EPSILON = 1e-5
TOLERANCE = 1e-4
FRAMES_TIMED = 50


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        # Written out: its derivative takes fewer passes than that of PyTorch's function here.
        mean_square = (x * x).mean(-1, keepdim=True)
        return x * (mean_square + EPSILON).rsqrt() * self.gain


class Mixer(nn.Module):
    """Mamba-2 with one group. Shapes: b sequences, g chunks of q frames, h heads of p channels, n state entries."""

    def __init__(self, width, state, head_width):
        super().__init__()
        inner = EXPAND * width
        heads = inner // head_width
        self.sizes = [inner, inner + 2 * state, heads]
        self.shared = [inner, state, state]
        self.head_width = head_width
        self.enter = nn.Linear(width, sum(self.sizes), bias=False)
        bound = TAPS ** -0.5
        self.taps = nn.Parameter(torch.empty(TAPS, self.sizes[1]).uniform_(-bound, bound))
        self.tap_bias = nn.Parameter(torch.zeros(self.sizes[1]))
        self.step_bias = nn.Parameter(torch.full((heads,), -4.0))
        self.log_rate = nn.Parameter(torch.linspace(1, 16, heads).log())
        self.skip = nn.Parameter(torch.ones(heads, 1))
        self.norm = RMSNorm(inner)
        self.leave = nn.Linear(inner, width, bias=False)

    def parts(self, mixed, steps):
        """x, B, C after the convolution's activation; step sizes; logarithms of the decays."""
        x, b, c = F.silu(mixed).split(self.shared, -1)
        steps = F.softplus(steps.float() + self.step_bias)
        return x.unflatten(-1, (-1, self.head_width)), b, c, steps, -steps * self.log_rate.exp()

    def finish(self, y, gate):
        return self.leave(self.norm(y * F.silu(gate)))

    def forward(self, u, chunk):
        gate, past, steps = self.enter(u).split(self.sizes, -1)
        length = past.shape[1]
        padded = F.pad(past, (0, 0, TAPS - 1, 0))
        taps, mixed = self.taps.to(past.dtype), self.tap_bias.to(past.dtype)
        for tap in range(TAPS):
            mixed = torch.addcmul(mixed, padded[:, tap:tap + length], taps[tap])
        x, b, c, steps, fall = self.parts(mixed, steps)
        y = self.scan(*(part.unflatten(1, (-1, chunk)) for part in (x, b, c, steps, fall)))
        return self.finish(y.flatten(1, 2), gate)

    def scan(self, x, b, c, steps, fall):
        """x [b, g, q, h, p], B and C [b, g, q, n], steps and fall [b, g, q, h] to [b, g, q, h p]."""
        kind, chunk, heads = x.dtype, x.shape[2], x.shape[3]
        fallen = fall.cumsum(2)                                                  # from the start of its chunk
        whole = fallen[:, :, -1]                                                 # [b, g, h]
        dosed = x * steps.to(kind).unsqueeze(-1)

        # Within a chunk: attention whose weights are decays.
        by_head = fallen.transpose(2, 3)
        ahead = torch.full((chunk, chunk), -torch.inf, device=x.device).triu(1)
        reach = (by_head.unsqueeze(-1) - by_head.unsqueeze(-2) + ahead).exp()
        pull = (c @ b.mT).unsqueeze(2) * reach.to(kind)
        near = (pull @ dosed.transpose(2, 3)).transpose(2, 3)

        # What each chunk adds to the state, carried to the start of every later one.
        lasting = (dosed * (whole.unsqueeze(2) - fallen).exp().to(kind).unsqueeze(-1)).flatten(3)
        added = (b.mT @ lasting).unflatten(-1, (heads, -1))                       # [b, g, n, h, p]
        until = whole.cumsum(1).transpose(1, 2)                                  # [b, h, g]
        before = until - whole.transpose(1, 2)
        not_yet = torch.full((whole.shape[1],) * 2, -torch.inf, device=x.device).triu()
        carry = (before.unsqueeze(-1) - until.unsqueeze(-2) + not_yet).exp().to(kind)
        states = torch.einsum('bhij,bjnhp->binhp', carry, added).flatten(3)
        far = (c @ states).unflatten(-1, (heads, -1))

        # First what lies in memory as the result shall.
        y = torch.addcmul(x * self.skip.to(kind), far, fallen.exp().to(kind).unsqueeze(-1))
        return (y + near).flatten(3)

    def fresh(self, batch):
        inner, state, _ = self.shared
        return torch.zeros(batch, TAPS - 1, inner + 2 * state), torch.zeros(batch, inner // self.head_width,
                                                                            self.head_width, state)

    def advance(self, u, window, memory):
        """One frame [b, d]; the last inputs [b, 3, channels] and the memory [b, h, p, n] are updated in place."""
        gate, newest, steps = self.enter(u).split(self.sizes, -1)
        mixed = self.tap_bias + (window * self.taps[:-1]).sum(1) + newest * self.taps[-1]
        window.copy_(torch.cat([window[:, 1:], newest.unsqueeze(1)], 1))
        x, b, c, steps, fall = self.parts(mixed, steps)
        memory.mul_(fall.exp()[..., None, None])
        memory.addcmul_((x * steps.unsqueeze(-1)).unsqueeze(-1), b[:, None, None])
        y = torch.addcmul((memory.flatten(1, 2) @ c.unsqueeze(-1)).view_as(x), x, self.skip)
        return self.finish(y.flatten(1), gate)


class Block(nn.Module):
    def __init__(self, options):
        super().__init__()
        width = options.d_model
        self.norm = RMSNorm(width)
        self.mixer = Mixer(width, options.d_state, options.headdim)
        self.wide = nn.Sequential(RMSNorm(width), nn.Linear(width, 2 * width), nn.GELU(),
                                  nn.Linear(2 * width, width)) if options.ff else None

    def after(self, x, mixed):
        x = x + mixed
        return x if self.wide is None else x + self.wide(x)


class LanguageModel(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.embedding = nn.Embedding(options.vocab, options.d_model)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.layers))
        self.head = nn.Sequential(RMSNorm(options.d_model), nn.Linear(options.d_model, options.vocab, bias=False))
        self.chunk = options.chunk

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block.after(x, block.mixer(block.norm(x), self.chunk))
        return self.head(x)

    def advance(self, tokens, states):
        x = self.embedding(tokens)
        for block, state in zip(self.blocks, states):
            x = block.after(x, block.mixer.advance(block.norm(x), *state))
        return self.head(x)

    def fresh(self, batch):
        return [block.mixer.fresh(batch) for block in self.blocks]


def seconds(work, runs, before):
    """Times of `runs` calls after `before` that do not count."""
    times = []
    for _ in range(before + runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times[before:]


@torch.no_grad()
def check(model, tokens):
    """Chunked against recurrence over two chunks."""
    tokens = tokens[:, :2 * model.chunk]
    states = model.fresh(len(tokens))
    stepped = torch.stack([model.advance(column, states) for column in tokens.T], 1)
    off = (model(tokens) - stepped).abs().max().item()
    print(f'chunked against recurrence: logits differ by at most {off:.1e}')
    assert off < TOLERANCE


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {'layers': 6, 'd-model': 256, 'd-state': 64, 'headdim': 64, 'vocab': 1024, 'batch': 8, 'length': 512,
             'chunk': 64, 'threads': 2, 'runs': 5}
    for name, value in sizes.items():
        parser.add_argument(f'--{name}', type=int, default=value, help=f'default {value}')
    parser.add_argument('--ff', action='store_true', help='a feed-forward layer of twice the width after each mixer')
    parser.add_argument('--bf16', action='store_true', help='bfloat16 where autocast allows it')
    parser.add_argument('--compile', action='store_true', help='compile the training pass with torch.compile')
    options = parser.parse_args()
    if options.length % options.chunk:
        parser.error('--chunk must divide --length')
    return options


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = LanguageModel(options)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads, {count} parameters')
    tokens = torch.randint(options.vocab, (options.batch, options.length + 1))
    pair = tokens[:2, :-1]
    check(model, pair)

    run = torch.compile(model) if options.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def train():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast('cpu', torch.bfloat16, enabled=options.bf16):
            logits = run(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    times = seconds(train, options.runs, 2)
    median = statistics.median(times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f'training step: median {median:.3f} s, least {min(times):.3f} s, '
          f'{options.batch * options.length / median:.0f} tokens/s, peak memory {peak:.0f} MB')

    states = model.fresh(len(pair))
    columns = pair.T[:FRAMES_TIMED]

    @torch.no_grad()
    def decode():
        for column in columns:
            model.advance(column, states)

    frame = statistics.median(seconds(decode, options.runs, 1)) / len(columns)
    print(f'decoding: median {1e3 * frame:.3f} ms a frame of {len(pair)} sequences')


if __name__ == '__main__':
    main()
