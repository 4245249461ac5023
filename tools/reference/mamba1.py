#!/usr/bin/env python3
"""Golden files of the Mamba mixer: the recurrence frame by frame in float64, gradients by PyTorch's autograd.

Written from the paper's equations (Gu and Dao, arXiv:2312.00752) and the published layer's layout, independently of
the Rust code; compared here with the mixer of `transformers`, outputs and gradients, where that can do the same (it
cannot start from given states). Needs torch, transformers and safetensors:

    python3 tools/reference/mamba1.py crates/kernels/tests/golden
"""
import sys
from pathlib import Path
from unittest import mock

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.mamba.modeling_mamba import MambaMixer

TAPS = 4


def mixer(projected, conv_weight, conv_bias, x_projection, dt_projection, dt_bias, a_log, d_skip, conv_state,
          ssm_state):
    """Outputs [B, T, inner], final convolution inputs [B, inner, 3], final state [B, inner, N]."""
    (inner, state), rank = a_log.shape, dt_projection.shape[1]
    x_in, z = projected.split(inner, -1)
    rate = -torch.exp(a_log)
    history, s, outputs = conv_state, ssm_state, []
    for t in range(projected.shape[1]):
        window = torch.cat([history, x_in[:, t].unsqueeze(-1)], -1)              # [B, inner, 4], oldest first
        history = window[..., 1:]
        x = torch.nn.functional.silu((window * conv_weight).sum(-1) + conv_bias)
        low, b, c = (x @ x_projection.T).split([rank, state, state], -1)
        dt = torch.log1p(torch.exp(low @ dt_projection.T + dt_bias))             # [B, inner]
        s = torch.exp(dt.unsqueeze(-1) * rate) * s + (dt * x).unsqueeze(-1) * b.unsqueeze(1)
        y = (s * c.unsqueeze(1)).sum(-1) + d_skip * x
        outputs.append(y * torch.nn.functional.silu(z[:, t]))
    return torch.stack(outputs, 1), history, s


def uniform(generator, *shape, low=-1.0, high=1.0):
    """f64 tensor whose values are exact in f32."""
    values = torch.rand(*shape, generator=generator, dtype=torch.float32)
    return (low + (high - low) * values).double()


def make_inputs(g, batch, frames, inner, state, rank):
    return {
        'projected': uniform(g, batch, frames, 2 * inner, low=-2, high=2),
        'conv_weight': uniform(g, inner, TAPS, low=-0.5, high=0.5),
        'conv_bias': uniform(g, inner, low=-0.5, high=0.5),
        'x_projection': uniform(g, rank + 2 * state, inner, low=-0.5, high=0.5),
        'dt_projection': uniform(g, inner, rank),
        'dt_bias': uniform(g, inner, low=-5, high=-1),
        'a_log': uniform(g, inner, state, low=0, high=2.7),
        'd_skip': uniform(g, inner, low=0.5, high=1.5),
        'conv_state': uniform(g, batch, inner, TAPS - 1, low=-2, high=2),
        'ssm_state': uniform(g, batch, inner, state),
    }


def case(batch, frames, inner, state, rank, chunk, seed):
    g = torch.Generator().manual_seed(seed)
    inputs = make_inputs(g, batch, frames, inner, state, rank)
    for tensor in inputs.values():
        tensor.requires_grad_(True)
    results = mixer(*inputs.values())
    names = ('output', 'final_conv_state', 'final_ssm_state')
    upstream = [uniform(g, *result.shape, low=-s, high=s) for result, s in zip(results, (1, 1, 0.1))]
    sum((result * weight).sum() for result, weight in zip(results, upstream)).backward()
    tensors = {'sizes': torch.tensor([batch, frames, inner, state, rank, chunk])}
    tensors |= {name: tensor.detach().float() for name, tensor in inputs.items()}
    tensors |= {f'upstream_{name}': tensor.float() for name, tensor in zip(names, upstream)}
    tensors |= {name: tensor.detach() for name, tensor in zip(names, results)}
    tensors |= {f'd_{name}': tensor.grad for name, tensor in inputs.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def compare_with_transformers(batch, frames, width, state, rank, seed):
    """Both mixers on the same weights from zero states, with the outer projections of the published layer."""
    g = torch.Generator().manual_seed(seed)
    inner = 2 * width
    inputs = make_inputs(g, batch, frames, inner, state, rank)
    config = transformers.MambaConfig(
        hidden_size=width, state_size=state, time_step_rank=rank, expand=2, conv_kernel=TAPS, num_hidden_layers=1)
    published = MambaMixer(config, 0).double().eval()
    names = {
        'conv1d.weight': inputs['conv_weight'].unsqueeze(1), 'conv1d.bias': inputs['conv_bias'],
        'x_proj.weight': inputs['x_projection'], 'dt_proj.weight': inputs['dt_projection'],
        'dt_proj.bias': inputs['dt_bias'], 'A_log': inputs['a_log'], 'D': inputs['d_skip'],
        'in_proj.weight': uniform(g, 2 * inner, width), 'out_proj.weight': uniform(g, width, inner),
    }
    published.load_state_dict(names)
    u, upstream = uniform(g, batch, frames, width), uniform(g, batch, frames, width)
    # The published code rounds a few tensors to float32 on the way; here that stays float64.
    with mock.patch.object(torch.Tensor, 'float', torch.Tensor.double):
        expected = published(u)
    (expected * upstream).sum().backward()
    ours = {name: tensor.clone().requires_grad_(True) for name, tensor in names.items()}
    zeros = torch.zeros_like(inputs['conv_state']), torch.zeros_like(inputs['ssm_state'])
    y, _, _ = mixer(
        u @ ours['in_proj.weight'].T, ours['conv1d.weight'].squeeze(1), ours['conv1d.bias'], ours['x_proj.weight'],
        ours['dt_proj.weight'], ours['dt_proj.bias'], ours['A_log'], ours['D'], *zeros)
    y = y @ ours['out_proj.weight'].T
    (y * upstream).sum().backward()
    pairs = {'output': (y.detach(), expected.detach())}
    pairs |= {name: (ours[name].grad, tensor.grad) for name, tensor in published.named_parameters()}
    for name, (a, b) in pairs.items():
        off = ((a - b).norm() / b.norm()).item()
        assert off < 1e-12, f'{name}: {off:.2e} from transformers {transformers.__version__}'
    print(f'equal to transformers {transformers.__version__} in {len(pairs)} tensors')


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    compare_with_transformers(2, 33, 16, 8, 3, seed=5)
    metadata = {'torch': torch.__version__, 'safetensors': safetensors.__version__, 'made_by': 'tools/reference/mamba1.py'}
    for name, arguments in {
        'mamba1_1': (2, 1, 36, 8, 3, 64),
        'mamba1_7': (2, 7, 40, 16, 3, 4),
        'mamba1_300': (1, 300, 10, 6, 2, 64),
    }.items():
        tensors = case(*arguments, seed=len(name))
        path = folder / f'{name}.safetensors'
        save_file(tensors, path, metadata)
        print(path, path.stat().st_size)


if __name__ == '__main__':
    main()
