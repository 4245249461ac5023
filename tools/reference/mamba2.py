#!/usr/bin/env python3
"""Golden files of the Mamba-2 mixer: the recurrence frame by frame in float64, gradients by PyTorch's autograd.

Written from the paper's equations (Dao and Gu, arXiv:2405.21060) and the published layer's layout, independently of
the Rust code. Needs torch and safetensors:

    python3 tools/reference/mamba2.py crates/kernels/tests/golden
"""
import sys
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

EPSILON = 1e-5
TAPS = 4


def mixer(projected, conv_weight, conv_bias, dt_bias, a_log, d_skip, norm, conv_state, ssm_state, sizes):
    """Outputs [B, T, inner], final convolution inputs [B, channels, 3], final state [B, H, P, N]."""
    inner, state, heads, groups = sizes
    width, per_group = inner // heads, heads // groups
    channels = inner + 2 * groups * state
    z, xbc, dt_raw = projected.split([inner, channels, heads], -1)
    history, s, outputs = conv_state, ssm_state, []
    for t in range(projected.shape[1]):
        window = torch.cat([history, xbc[:, t].unsqueeze(-1)], -1)               # [B, channels, 4], oldest first
        history = window[..., 1:]
        active = torch.nn.functional.silu((window * conv_weight).sum(-1) + conv_bias)
        x, b, c = active.split([inner, groups * state, groups * state], -1)
        x = x.view(-1, heads, width)
        b = b.view(-1, groups, state).repeat_interleave(per_group, 1)            # [B, H, N]
        c = c.view(-1, groups, state).repeat_interleave(per_group, 1)
        dt = torch.log1p(torch.exp(dt_raw[:, t] + dt_bias))                      # [B, H]
        decay = torch.exp(-dt * torch.exp(a_log))
        s = decay[..., None, None] * s + dt[..., None, None] * x[..., None] * b[:, :, None]
        y = (s * c[:, :, None]).sum(-1) + d_skip[:, None] * x
        gated = (y.reshape(-1, inner) * torch.nn.functional.silu(z[:, t])).view(-1, groups, inner // groups)
        gated = gated / torch.sqrt((gated * gated).mean(-1, keepdim=True) + EPSILON)
        outputs.append(gated.reshape(-1, inner) * norm)
    return torch.stack(outputs, 1), history, s


def uniform(generator, *shape, low=-1.0, high=1.0):
    """f64 tensor whose values are exact in f32."""
    values = torch.rand(*shape, generator=generator, dtype=torch.float32)
    return (low + (high - low) * values).double()


def case(batch, frames, inner, state, heads, groups, chunk, seed):
    g = torch.Generator().manual_seed(seed)
    channels = inner + 2 * groups * state
    inputs = {
        'projected': uniform(g, batch, frames, inner + channels + heads, low=-2, high=2),
        'conv_weight': uniform(g, channels, TAPS, low=-0.5, high=0.5),
        'conv_bias': uniform(g, channels, low=-0.5, high=0.5),
        'dt_bias': uniform(g, heads, low=-5, high=-1),
        'a_log': uniform(g, heads, low=0, high=2.7),
        'd_skip': uniform(g, heads, low=0.5, high=1.5),
        'norm': uniform(g, inner, low=0.5, high=1.5),
        'conv_state': uniform(g, batch, channels, TAPS - 1, low=-2, high=2),
        'ssm_state': uniform(g, batch, heads, inner // heads, state),
    }
    for tensor in inputs.values():
        tensor.requires_grad_(True)
    results = mixer(*inputs.values(), (inner, state, heads, groups))
    names = ('output', 'final_conv_state', 'final_ssm_state')
    upstream = [uniform(g, *result.shape, low=-s, high=s) for result, s in zip(results, (1, 1, 0.1))]
    sum((result * weight).sum() for result, weight in zip(results, upstream)).backward()
    tensors = {'sizes': torch.tensor([batch, frames, inner, state, heads, groups, chunk])}
    tensors |= {name: tensor.detach().float() for name, tensor in inputs.items()}
    tensors |= {f'upstream_{name}': tensor.float() for name, tensor in zip(names, upstream)}
    tensors |= {name: tensor.detach() for name, tensor in zip(names, results)}
    tensors |= {f'd_{name}': tensor.grad for name, tensor in inputs.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {'torch': torch.__version__, 'safetensors': safetensors.__version__, 'made_by': 'tools/reference/mamba2.py'}
    for name, arguments in {
        'mamba2_1': (2, 1, 32, 16, 2, 1, 64),
        'mamba2_7': (1, 7, 32, 16, 4, 2, 4),
        'mamba2_300': (1, 300, 12, 6, 2, 1, 64),
    }.items():
        tensors = case(*arguments, seed=len(name))
        path = folder / f'{name}.safetensors'
        save_file(tensors, path, metadata)
        print(path, path.stat().st_size)


if __name__ == '__main__':
    main()
