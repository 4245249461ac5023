#!/usr/bin/env python3
"""A tiny checkpoint in the names and layout of the published SSM-TTM one, and the logits it must give.

The checkpoint is pickled by torch.save like Lightning's, with a text encoder, optimiser state and callbacks beside the
language model, and with tensors that are slices and transposes of their storages. The forward pass is written from the
paper's repository (arXiv:2601.14786) in float64, independently of the Rust code. Needs torch and safetensors:

    python3 tools/reference/ssm_ttm.py crates/model/tests/golden
"""
import hashlib
import io
import json
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

from mamba2 import mixer

EPSILON = 1e-5
HEAD_WIDTH = 64
# The published model has 24 layers of width 1024, 512 state entries and inner width 2 * 1024. Here the inner width is
# 4 times the width, so that a small file has two heads.
SIZES = {'layers': 2, 'd_model': 32, 'd_state': 16, 'inner': 128, 'vocab_size': 17, 'codec_layer': 2, 'text': 24}


def attribute_dict():
    """A class of the name under which Lightning pickles hyper-parameters, which need not be installed for it."""
    name = 'lightning.fabric.utilities.data'
    parts = name.split('.')
    for length in range(1, len(parts) + 1):
        sys.modules.setdefault('.'.join(parts[:length]), types.ModuleType('.'.join(parts[:length])))
    carrier = type('AttributeDict', (dict,), {'__module__': name})
    sys.modules[name].AttributeDict = carrier
    return carrier


def uniform(generator, *shape, low=-1.0, high=1.0):
    return low + (high - low) * torch.rand(*shape, generator=generator)


def language_model(g):
    """All tensors of the network, by the published names without their prefix."""
    d, n, inner, vocabulary = (SIZES[name] for name in ('d_model', 'd_state', 'inner', 'vocab_size'))
    heads, channels = inner // HEAD_WIDTH, inner + 2 * n
    matrix = lambda rows, columns: uniform(g, rows, columns) * 1.7 / columns ** 0.5
    tensors = {
        'condition_norm.weight': uniform(g, d, low=0.5, high=1.5),
        'condition_norm.bias': uniform(g, d, low=-0.3, high=0.3),
        'condition_linear.weight': matrix(d, SIZES['text']),
        'condition_linear.bias': uniform(g, d, low=-0.3, high=0.3),
    }
    for k in range(SIZES['codec_layer']):
        tensors[f'embedding.{k}.weight'] = torch.randn(vocabulary, d, generator=g)
    for i in range(SIZES['layers']):
        tensors |= {f'backbone.{i}.{name}': tensor for name, tensor in {
            'mamba.norm.weight': uniform(g, d, low=0.5, high=1.5),
            'mamba.mamba.dt_bias': uniform(g, heads, low=-5, high=-1),
            'mamba.mamba.A_log': uniform(g, heads, low=0, high=2.7),
            'mamba.mamba.D': uniform(g, heads, low=0.5, high=1.5),
            'mamba.mamba.in_proj.weight': matrix(inner + channels + heads, d),
            'mamba.mamba.conv1d.weight': uniform(g, channels, 1, 4, low=-0.5, high=0.5),
            'mamba.mamba.conv1d.bias': uniform(g, channels, low=-0.5, high=0.5),
            'mamba.mamba.norm.weight': uniform(g, inner, low=0.5, high=1.5),
            'mamba.mamba.out_proj.weight': matrix(d, inner),
            'ff.norm.weight': uniform(g, d, low=0.5, high=1.5),
            'ff.feed_forward.0.weight': matrix(2 * d, d),
            'ff.feed_forward.0.bias': uniform(g, 2 * d, low=-0.3, high=0.3),
            'ff.feed_forward.3.weight': matrix(d, 2 * d),
            'ff.feed_forward.3.bias': uniform(g, d, low=-0.3, high=0.3),
        }.items()}
    for k in range(SIZES['codec_layer']):
        tensors[f'lm_head.{k}.weight'] = matrix(vocabulary, d)
    return tensors


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPSILON) * weight


def logits(tensors, text, codes):
    """Logits [K, T + 1, vocabulary] for text [S, width] and codes [K, T], from the last text position on."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    d, n, inner = SIZES['d_model'], SIZES['d_state'], SIZES['inner']
    heads, channels = inner // HEAD_WIDTH, inner + 2 * n
    condition = text.double() @ w['condition_linear.weight'].T + w['condition_linear.bias']
    centred = condition - condition.mean(-1, keepdim=True)
    condition = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + EPSILON)
    condition = condition * w['condition_norm.weight'] + w['condition_norm.bias']
    audio = sum(w[f'embedding.{k}.weight'][row] for k, row in enumerate(codes))
    h = torch.cat([condition, audio])
    half = d // 2
    phase = torch.arange(len(h), dtype=torch.float64)[:, None] / 10000 ** (torch.arange(half).double() / (half - 1))
    h = h + torch.cat([phase.cos(), phase.sin()], -1)
    for i in range(SIZES['layers']):
        at = lambda name: w[f'backbone.{i}.{name}']
        projected = rms_norm(h, at('mamba.norm.weight')) @ at('mamba.mamba.in_proj.weight').T
        mixed, _, _ = mixer(
            projected[None], at('mamba.mamba.conv1d.weight')[:, 0], at('mamba.mamba.conv1d.bias'),
            at('mamba.mamba.dt_bias'), at('mamba.mamba.A_log'), at('mamba.mamba.D'), at('mamba.mamba.norm.weight'),
            torch.zeros(1, channels, 3).double(), torch.zeros(1, heads, HEAD_WIDTH, n).double(), (inner, n, heads, 1))
        h = h + mixed[0] @ at('mamba.mamba.out_proj.weight').T
        wide = rms_norm(h, at('ff.norm.weight')) @ at('ff.feed_forward.0.weight').T + at('ff.feed_forward.0.bias')
        wide = 0.5 * wide * (1 + torch.erf(wide / 2 ** 0.5))
        h = h + wide @ at('ff.feed_forward.3.weight').T + at('ff.feed_forward.3.bias')
    h = h[len(text) - 1:]
    return torch.stack([h @ w[f'lm_head.{k}.weight'].T for k in range(SIZES['codec_layer'])])


def as_views(tensors):
    """The same values, some as slices and transposes of larger storages."""
    views = dict(tensors)
    name = 'backbone.0.mamba.mamba.out_proj.weight'
    views[name] = tensors[name].T.contiguous().T
    name = 'backbone.1.ff.feed_forward.3.weight'
    wide = torch.full((tensors[name].shape[0], 3 * tensors[name].shape[1]), 9.0)
    wide[:, 7:7 + tensors[name].shape[1]] = tensors[name]
    views[name] = wide[:, 7:7 + tensors[name].shape[1]]
    name = 'backbone.1.mamba.mamba.conv1d.weight'
    sparse = torch.full((*tensors[name].shape, 5), 9.0)
    sparse[..., 2] = tensors[name]
    views[name] = sparse[..., 2]
    return views


def optimizer_state(tensors):
    """What AdamW leaves after a step, for everything but the mixers, which would make the file large."""
    trained = [torch.nn.Parameter(tensor.clone()) for name, tensor in tensors.items() if '.mamba.mamba.' not in name]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.999), eps=1e-7, weight_decay=0.02)
    sum((parameter * parameter).sum() for parameter in trained).backward()
    optimizer.step()
    return optimizer.state_dict()


def checkpoint(tensors, g):
    carrier = attribute_dict()
    shared = uniform(g, 20, SIZES['text'])
    state = OrderedDict((f'music_model.{name}', tensor) for name, tensor in as_views(tensors).items())
    state['text_encoder.shared.weight'] = shared
    state['text_encoder.encoder.embed_tokens.weight'] = shared
    state['text_encoder.encoder.final_layer_norm.weight'] = torch.ones(SIZES['text'], dtype=torch.bfloat16)
    state._metadata = OrderedDict([('', {'version': 1})])
    model = {name: SIZES[name] for name in ('layers', 'vocab_size', 'codec_layer', 'd_model', 'd_state')}
    config = {
        'training': {'name': 'tiny', 'precision': 'bf16', 'model_size': {'total_params': 0.05}},
        'model': model | {'drop_p': 0.3, 'is_incontext': True},
        'optimizer': {'optim_lr': 1e-4, 'weight_decay': 0.02, 'betas': (0.9, 0.999)},
    }
    progress = {'total': {'ready': 2, 'completed': 1}, 'is_last_batch': True}
    callback = {'monitor': None, 'best_k_models': {}, 'kth_value': torch.tensor(float('inf')), 'dirpath': 'ckpts/é'}
    return {
        'epoch': 50,
        'global_step': 21500,
        'pytorch-lightning_version': '2.6.0',
        'state_dict': state,
        'loops': {'fit_loop': {'state_dict': {}, 'epoch_loop.batch_progress': progress}},
        'callbacks': {"ModelCheckpoint{'monitor': None, 'mode': 'min'}": callback},
        'optimizer_states': [optimizer_state(tensors)],
        'lr_schedulers': [{'base_lrs': [1e-4], 'last_epoch': 51, 'lr_lambdas': [None]}],
        'rng': {'big': 2 ** 80, 'raw': b'\x00\xff', 'device': torch.device('cuda', 0), 'counts': defaultdict(int, a=-1)},
        'hparams_name': 'kwargs',
        'hyper_parameters': carrier(config=config),
    }


def main():
    folder = Path(sys.argv[1])
    g = torch.Generator().manual_seed(9)
    tensors = language_model(g)
    frames, tokens, books = 11, 5, SIZES['codec_layer']
    text = uniform(g, tokens, SIZES['text'], low=-2, high=2)
    codes = torch.randint(0, SIZES['vocab_size'], (books, frames), generator=g)
    codes[:, 0] = SIZES['vocab_size'] - 1
    # Through memory, as Lightning does: the folder inside is then called `archive`.
    file = io.BytesIO()
    torch.save(checkpoint(tensors, g), file)
    path = folder / 'ssm_ttm.ckpt'
    path.write_bytes(file.getvalue())
    hashes = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in sorted(tensors.items())}
    # One key only: several are written in any order.
    metadata = {'reference': json.dumps({
        'torch': torch.__version__, 'safetensors': safetensors.__version__, 'made_by': 'tools/reference/ssm_ttm.py',
        'shapes': {name: list(tensor.shape) for name, tensor in tensors.items()}, 'sha256': hashes,
    })}
    golden = {'text': text, 'codes': codes.int(), 'logits': logits(tensors, text, codes)}
    save_file(golden, folder / 'ssm_ttm.safetensors', metadata)
    for written in (path, folder / 'ssm_ttm.safetensors'):
        print(written, written.stat().st_size)


if __name__ == '__main__':
    main()
