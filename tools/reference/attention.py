#!/usr/bin/env python3
"""Golden files of multi-head attention: softmax written out in float64, gradients by PyTorch's autograd.

Causal self-attention, causal attention of the last positions alone, and cross-attention, each
with padding at the start of one sequence. Outputs are compared with PyTorch's own attention wherever a query sees a
key; where none is seen the output is zero. Needs torch and safetensors:

    python3 tools/reference/attention.py crates/kernels/tests/golden
"""
import math
import sys
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file


def visible(queries, keys, causal, padding):
    """Who sees whom, [B, 1, queries, keys]: no padding, and no key after the query's own position."""
    key = torch.arange(keys)
    seen = key >= torch.tensor(padding)[:, None, None]
    if causal:
        seen = seen & (key <= torch.arange(keys - queries, keys)[:, None])
    return seen.expand(-1, queries, -1)[:, None]


def attention(query, key, value, heads, seen):
    """Output [B, queries, d]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    powers = torch.exp(scores - scores.amax(-1, keepdim=True)) * seen
    sums = powers.sum(-1, keepdim=True)
    some = seen.any(-1, keepdim=True)
    output = powers @ v / torch.where(some, sums, torch.ones_like(sums))
    library = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen | ~some)
    torch.testing.assert_close(output, torch.where(some, library, torch.zeros_like(library)), rtol=1e-11, atol=1e-11)
    return output.transpose(1, 2).flatten(2)


def uniform(generator, *shape, scale):
    """f64 tensor whose values are exact in f32."""
    return (scale * (2 * torch.rand(*shape, generator=generator, dtype=torch.float32) - 1)).double()


def case(g, queries, keys, heads, width, causal, padding):
    """Inputs, upstream gradient, output and gradients."""
    batch, d = len(padding), heads * width
    inputs = {'query': uniform(g, batch, queries, d, scale=3), 'key_value': uniform(g, batch, keys, 2 * d, scale=3)}
    for tensor in inputs.values():
        tensor.requires_grad_(True)
    key, value = inputs['key_value'].split(d, -1)
    output = attention(inputs['query'], key, value, heads, visible(queries, keys, causal, padding))
    upstream = uniform(g, *output.shape, scale=1)
    (output * upstream).sum().backward()
    tensors = {name: tensor.detach().float() for name, tensor in inputs.items()}
    tensors |= {'upstream': upstream.float(), 'output': output.detach()}
    return tensors | {f'd_{name}': tensor.grad for name, tensor in inputs.items()}


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        'torch': torch.__version__,
        'safetensors': safetensors.__version__,
        'made_by': 'tools/reference/attention.py',
    }
    for length, last, text, heads, width in ((1, 1, 3, 2, 5), (7, 2, 9, 3, 5), (300, 33, 21, 2, 3)):
        g = torch.Generator().manual_seed(length)
        cases = {
            'self': (length, length, heads, width, True, [0, length // 3]),
            'last': (last, length + 2, heads, width, True, [1 + length // 4, 0]),
            'cross': (length, text, heads, width, False, [text // 3, 0]),
        }
        paddings = [count for arguments in cases.values() for count in arguments[-1]]
        tensors = {'sizes': torch.tensor([length, last, text, heads, width, *paddings])}
        for name, arguments in cases.items():
            tensors |= {f'{name}.{key}': value.contiguous() for key, value in case(g, *arguments).items()}
        path = folder / f'attention_{length}.safetensors'
        save_file(tensors, path, metadata)
        print(path, path.stat().st_size)


if __name__ == '__main__':
    main()
