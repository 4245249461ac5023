#!/usr/bin/env python3
"""Golden files of the whole language model, for every backbone and option: PyTorch in float64, gradients by autograd.

Each clip is computed alone and without padding, so that a padded batch has something to be equal to; recurrences run
frame by frame and attention is written out. Mamba-2 is arXiv:2405.21060, Mamba-1 arXiv:2312.00752, the channel mixer
of Fourier blocks SiMBA, arXiv:2403.15360 (transformed over blocks of channels only, which keeps it causal), the blocks
those of SSM-TTM, arXiv:2601.14786. Embeddings enter the stack as they are stored, without a factor.

Before anything is written, the layers are compared with other programs: both mixers with transformers' own, attention
with PyTorch's fused one on padded batches, the Fourier blocks with a transform written out. Needs torch, safetensors
and transformers:

    python3 tools/reference/backbones.py crates/model/tests/golden

A file holds: the parameters by name (f16, exact); `text_states` [B, L, text width], right-aligned, and `text_lengths`
[B]; `codes` [B, K, T] as the model reads them; `logits` [B, T, K, cardinality]; `loss`, the sum of logits times
`loss_weights`; `gradient.NAME` of that loss for every parameter; `state.LAYER.MIXER.conv` [B, channels, 3], oldest
input first, and `state.LAYER.MIXER.ssm` [B, heads, head width, state] or [B, channels, state] after the last column;
`uncaptioned.logits` [T, K, cardinality] of the first clip's codes without a caption and, where null tokens are learned,
`uncaptioned.loss_weights` and `uncaptioned.gradient.null_prefix`, for which captions give zero. The metadata entry
`config` is the model's configuration.
"""
import json
import math
import sys
from pathlib import Path

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional as F

EPSILON = 1e-5
TAPS = 4
SHRINKAGE = 0.01
FRAMES = 9
TEXT_LENGTHS = (5, 3)

BASE = {
    'codebooks': 2, 'delays': [0, 1], 'cardinality': 20, 'd_model': 32, 'layers': 2, 'd_state': 8, 'head_dim': 16,
    'expand': 2, 'chunk': 4, 'ff_multiple': 2, 'text_width': 12, 'null_tokens': 2, 'head': 'published',
    'ssm': 'mamba2', 'channel_mixer': 'feed_forward', 'groups': 1, 'positions': 'none', 'final_norm': True,
    'attention_head_dim': 16, 'fft_blocks': 4,
}
CASES = {
    'prefix_mamba': {'backbone': 'prefix_mamba'},
    'prefix_simba': {'backbone': 'prefix_simba', 'positions': 'sinusoidal', 'final_norm': False, 'null_tokens': 0},
    'prefix_simba_groups': {'backbone': 'prefix_simba', 'groups': 2, 'ff_multiple': 1},
    'prefix_simba_mamba1': {'backbone': 'prefix_simba', 'ssm': 'mamba1'},
    'prefix_simba_einfft': {'backbone': 'prefix_simba', 'channel_mixer': 'ein_fft', 'null_tokens': 0},
    'cross_simba': {'backbone': 'cross_simba'},
    'cross_transformer': {'backbone': 'cross_transformer', 'positions': 'sinusoidal', 'null_tokens': 0},
    'prefix_transformer': {'backbone': 'prefix_transformer', 'positions': 'sinusoidal', 'final_norm': False},
}
SUBLAYERS = {
    'prefix_mamba': ('mamba', 'mamba_2'),
    'prefix_simba': ('mamba', 'ff'),
    'cross_simba': ('mamba', 'cross_attention', 'ff'),
    'cross_transformer': ('self_attention', 'cross_attention', 'ff'),
    'prefix_transformer': ('self_attention', 'ff'),
}


def rms(x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPSILON)


def convolved(inputs, weights):
    """Causal convolution of [T, channels] and SiLU; also the last three inputs [channels, 3]."""
    padded = torch.cat([inputs.new_zeros(TAPS - 1, inputs.shape[1]), inputs])
    windows = torch.stack([padded[t:t + TAPS].T for t in range(len(inputs))])    # [T, channels, 4], oldest first
    out = (windows * weights('conv1d.weight')[:, 0]).sum(-1) + weights('conv1d.bias')
    return F.silu(out), windows[-1, :, 1:]


def mamba2(u, weights, config):
    inner, state, groups = config['expand'] * config['d_model'], config['d_state'], config['groups']
    width = config['head_dim']
    heads = inner // width
    z, xbc, dt = (u @ weights('in_proj.weight').T).split([inner, inner + 2 * groups * state, heads], -1)
    xbc, history = convolved(xbc, weights)
    x, b, c = xbc.split([inner, groups * state, groups * state], -1)
    x = x.view(-1, heads, width)
    b, c = (part.view(-1, groups, state).repeat_interleave(heads // groups, 1) for part in (b, c))
    dt = F.softplus(dt + weights('dt_bias'))
    decay = torch.exp(-dt * weights('A_log').exp())
    s, outputs = u.new_zeros(heads, width, state), []
    for t in range(len(u)):
        s = decay[t, :, None, None] * s + (dt[t, :, None] * x[t])[:, :, None] * b[t][:, None]
        outputs.append((s * c[t][:, None]).sum(-1) + weights('D')[:, None] * x[t])
    gated = torch.stack(outputs).flatten(1) * F.silu(z)
    normed = rms(gated.view(-1, groups, inner // groups)).flatten(1) * weights('norm.weight')
    return normed @ weights('out_proj.weight').T, history, s


def mamba1(u, weights, config):
    state, rank = config['d_state'], math.ceil(config['d_model'] / 16)
    x, z = (u @ weights('in_proj.weight').T).chunk(2, -1)
    x, history = convolved(x, weights)
    dt, b, c = (x @ weights('x_proj.weight').T).split([rank, state, state], -1)
    dt = F.softplus(dt @ weights('dt_proj.weight').T + weights('dt_proj.bias'))
    rates = -weights('A_log').exp()
    s, outputs = u.new_zeros(x.shape[1], state), []
    for t in range(len(u)):
        s = torch.exp(dt[t, :, None] * rates) * s + (dt[t] * x[t])[:, None] * b[t]
        outputs.append(s @ c[t] + weights('D') * x[t])
    return (torch.stack(outputs) * F.silu(z)) @ weights('out_proj.weight').T, history, s


def attention(q, k, v, width, causal):
    """Queries [T, d] over keys and values [S, d], heads beside each other."""
    q, k, v = (part.view(len(part), -1, width).transpose(0, 1) for part in (q, k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(width)
    if causal:
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def self_attention(x, weights, config):
    mixed = attention(*(x @ weights('in_proj.weight').T).chunk(3, -1), config['attention_head_dim'], True)
    return mixed @ weights('out_proj.weight').T


def cross_attention(x, text, weights, config):
    k, v = (text @ weights('kv_proj.weight').T).chunk(2, -1)
    mixed = attention(x @ weights('q_proj.weight').T, k, v, config['attention_head_dim'], False)
    return mixed @ weights('out_proj.weight').T


def feed_forward(x, weights):
    wide = F.gelu(x @ weights('feed_forward.0.weight').T + weights('feed_forward.0.bias'))
    return wide @ weights('feed_forward.3.weight').T + weights('feed_forward.3.bias')


def ein_fft(x, weights, blocks, nearest=None):
    """`nearest` gathers how close values come to a corner of ReLU or shrinkage, where f32 may turn the other way."""

    def product(values, layer):
        weight = torch.complex(*weights(f'ein_fft.weight_{layer}'))
        bias = torch.complex(*weights(f'ein_fft.bias_{layer}'))
        return torch.einsum('tbd,bdk->tbk', values, weight) + bias

    spectrum = torch.fft.fft(x.view(len(x), blocks, -1).to(torch.complex128), dim=1, norm='ortho')
    hidden = torch.view_as_real(product(spectrum, 1))
    out = torch.view_as_real(product(torch.view_as_complex(hidden.relu()), 2))
    if nearest is not None:
        nearest.append(min(hidden.abs().min().item(), (out.abs() - SHRINKAGE).abs().min().item()))
    out = torch.view_as_complex(F.softshrink(out, SHRINKAGE))
    return torch.fft.ifft(out, dim=1, norm='ortho').real.flatten(1)


def sinusoids(count, width):
    rates = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2 - 1))
    phases = torch.arange(count, dtype=torch.float64)[:, None] * rates
    return torch.cat([phases.cos(), phases.sin()], -1)


def language_model(parameters, config, text, codes, nearest=None):
    """Logits [T, K, cardinality] of codes [K, T] after a caption [S, text width] (or None), and states by name."""
    if text is None and config['null_tokens'] > 0:
        text = parameters['null_prefix']
    else:
        states = torch.zeros(1, config['text_width'], dtype=torch.float64) if text is None else text
        linear = states @ parameters['condition_linear.weight'].T + parameters['condition_linear.bias']
        text = F.layer_norm(linear, linear.shape[-1:], eps=EPSILON)
        text = text * parameters['condition_norm.weight'] + parameters['condition_norm.bias']
    h = sum(parameters[f'embedding.{k}.weight'][codes[k]] for k in range(config['codebooks']))
    if config['backbone'].startswith('prefix'):
        h = torch.cat([text, h])
    if config['positions'] == 'sinusoidal':
        h = h + sinusoids(*h.shape)
    states = {}
    for layer in range(config['layers']):
        for name in SUBLAYERS[config['backbone']]:
            sublayer = f'backbone.{layer}.{name}'
            x = rms(h) * parameters[f'{sublayer}.norm.weight']
            weights = lambda tensor, prefix=sublayer: parameters[f'{prefix}.{tensor}']
            if name == 'self_attention':
                out = self_attention(x, weights, config)
            elif name == 'cross_attention':
                out = cross_attention(x, text, weights, config)
            elif name == 'ff' and config['channel_mixer'] == 'ein_fft':
                out = ein_fft(x, weights, config['fft_blocks'], nearest)
            elif name == 'ff':
                out = feed_forward(x, weights)
            else:
                mixer = {'mamba1': mamba1, 'mamba2': mamba2}[config['ssm']]
                weights = lambda tensor, prefix=sublayer: parameters[f'{prefix}.mamba.{tensor}']
                out, conv, ssm = mixer(x, weights, config)
                states |= {f'state.{layer}.{name}.conv': conv, f'state.{layer}.{name}.ssm': ssm}
            h = h + out
    if config['final_norm']:
        h = rms(h) * parameters['final_norm.weight']
    h = h[-codes.shape[1]:]
    # The last row of a published head is the special code's: it cannot be predicted.
    heads = [parameters[f'lm_head.{k}.weight'][:-1] for k in range(config['codebooks'])]
    return torch.stack([h @ head.T for head in heads], 1), states


class Draw:
    """Values that are exact in f16, of a size at which every layer has something to say."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape, low=-1.0, high=1.0):
        values = torch.rand(*shape, generator=self.generator, dtype=torch.float64)
        return (low + (high - low) * values).half().double()

    def matrix(self, *shape, gain=1.0):
        """Keeps the variance of its inputs, times gain squared."""
        bound = gain * math.sqrt(3 / shape[-1])
        return self.uniform(*shape, low=-bound, high=bound)


def mamba2_parameters(draw, config):
    d, inner = config['d_model'], config['expand'] * config['d_model']
    shared, heads = 2 * config['groups'] * config['d_state'], inner // config['head_dim']
    return {
        'in_proj.weight': draw.matrix(2 * inner + shared + heads, d),
        'conv1d.weight': draw.matrix(inner + shared, 1, TAPS, gain=1.5),
        'conv1d.bias': draw.uniform(inner + shared, low=-0.3, high=0.3),
        'dt_bias': draw.uniform(heads, low=-2, high=0),
        'A_log': draw.uniform(heads, low=-1, high=1),
        'D': draw.uniform(heads, low=0.5, high=1.5),
        'norm.weight': draw.uniform(inner, low=0.5, high=1.5),
        'out_proj.weight': draw.matrix(d, inner),
    }


def mamba1_parameters(draw, config):
    d, inner, state = config['d_model'], config['expand'] * config['d_model'], config['d_state']
    rank = math.ceil(d / 16)
    return {
        'in_proj.weight': draw.matrix(2 * inner, d),
        'conv1d.weight': draw.matrix(inner, 1, TAPS, gain=1.5),
        'conv1d.bias': draw.uniform(inner, low=-0.3, high=0.3),
        'x_proj.weight': draw.matrix(rank + 2 * state, inner, gain=1.5),
        'dt_proj.weight': draw.matrix(inner, rank),
        'dt_proj.bias': draw.uniform(inner, low=-2, high=0),
        'A_log': draw.uniform(inner, state, low=-1, high=1),
        'D': draw.uniform(inner, low=0.5, high=1.5),
        'out_proj.weight': draw.matrix(d, inner),
    }


def sublayer_parameters(draw, name, config):
    d, f, blocks = config['d_model'], config['ff_multiple'] * config['d_model'], config['fft_blocks']
    w = d // blocks
    if name == 'self_attention':
        return {'in_proj.weight': draw.matrix(3 * d, d, gain=1.4), 'out_proj.weight': draw.matrix(d, d)}
    if name == 'cross_attention':
        return {'q_proj.weight': draw.matrix(d, d, gain=1.4), 'kv_proj.weight': draw.matrix(2 * d, d, gain=1.4),
                'out_proj.weight': draw.matrix(d, d)}
    if name == 'ff' and config['channel_mixer'] == 'ein_fft':
        weights = {f'ein_fft.weight_{layer}': draw.matrix(2, blocks, w, w) for layer in (1, 2)}
        return weights | {f'ein_fft.bias_{layer}': draw.uniform(2, blocks, w, low=-0.3, high=0.3) for layer in (1, 2)}
    if name == 'ff':
        return {'feed_forward.0.weight': draw.matrix(f, d), 'feed_forward.0.bias': draw.uniform(f, low=-0.3, high=0.3),
                'feed_forward.3.weight': draw.matrix(d, f), 'feed_forward.3.bias': draw.uniform(d, low=-0.3, high=0.3)}
    mixer = {'mamba1': mamba1_parameters, 'mamba2': mamba2_parameters}[config['ssm']](draw, config)
    return {f'mamba.{tensor}': values for tensor, values in mixer.items()}


def model_parameters(draw, config):
    d, rows = config['d_model'], config['cardinality'] + 1
    parameters = {
        'condition_linear.weight': draw.matrix(d, config['text_width'], gain=1.7),
        'condition_linear.bias': draw.uniform(d, low=-0.3, high=0.3),
        'condition_norm.weight': draw.uniform(d, low=0.5, high=1.5),
        'condition_norm.bias': draw.uniform(d, low=-0.3, high=0.3),
    }
    if config['null_tokens'] > 0:
        parameters['null_prefix'] = draw.uniform(config['null_tokens'], d)
    for k in range(config['codebooks']):
        parameters[f'embedding.{k}.weight'] = draw.uniform(rows, d)
        parameters[f'lm_head.{k}.weight'] = draw.matrix(rows, d)
    for layer in range(config['layers']):
        for name in SUBLAYERS[config['backbone']]:
            parameters[f'backbone.{layer}.{name}.norm.weight'] = draw.uniform(d, low=0.5, high=1.5)
            for tensor, values in sublayer_parameters(draw, name, config).items():
                parameters[f'backbone.{layer}.{name}.{tensor}'] = values
    if config['final_norm']:
        parameters['final_norm.weight'] = draw.uniform(d, low=0.5, high=1.5)
    return parameters


def golden(config, seed):
    draw, batch = Draw(seed), len(TEXT_LENGTHS)
    parameters = {name: values.requires_grad_(True) for name, values in model_parameters(draw, config).items()}
    shape = (batch, config['codebooks'], FRAMES)
    codes = torch.randint(config['cardinality'], shape, generator=draw.generator)
    for k, delay in enumerate(config['delays']):
        codes[:, k, :delay + 1] = config['cardinality']
    captions = [draw.uniform(length, config['text_width']) for length in TEXT_LENGTHS]
    nearest = []
    clips = [language_model(parameters, config, *clip, nearest) for clip in zip(captions, codes)]
    logits = torch.stack([logits for logits, _ in clips])
    loss_weights = draw.uniform(*logits.shape)
    loss = (logits * loss_weights).sum()
    loss.backward()
    # Far above what f32 rounds by here, about 1e-6.
    assert min(nearest, default=1) > 2e-5, f'a value lies {min(nearest)} from a corner: take another seed'

    text_states = torch.zeros(batch, max(TEXT_LENGTHS), config['text_width'], dtype=torch.float64)
    for row, caption in zip(text_states, captions):
        row[-len(caption):] = caption
    tensors = {
        'text_states': text_states.half(),
        'text_lengths': torch.tensor(TEXT_LENGTHS, dtype=torch.uint16),
        'codes': codes.to(torch.uint16),
        'logits': logits.float(),
        'loss': loss.float().reshape(1),
        'loss_weights': loss_weights.half(),
    }
    for name in clips[0][1]:
        tensors[name] = torch.stack([states[name] for _, states in clips]).float()
    for name, values in parameters.items():
        gradient = torch.zeros_like(values) if values.grad is None else values.grad
        assert gradient.abs().max() > 1e-3 or name == 'null_prefix', f'{name} does not matter'
        tensors |= {name: values.half(), f'gradient.{name}': gradient.float()}

    logits, _ = language_model(parameters, config, None, codes[0])
    tensors['uncaptioned.logits'] = logits.float()
    if config['null_tokens'] > 0:
        loss_weights = draw.uniform(*logits.shape)
        gradient, = torch.autograd.grad((logits * loss_weights).sum(), parameters['null_prefix'])
        tensors |= {'uncaptioned.loss_weights': loss_weights.half(),
                    'uncaptioned.gradient.null_prefix': gradient.float()}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def check(what, ours, theirs, limit):
    off = ((ours - theirs).norm() / theirs.norm()).item()
    print(f'{what}: relative difference {off:.1e}')
    assert off < limit, what


@torch.no_grad()
def check_mixers():
    """Transformers computes parts in f32 whatever it is given, hence the limit; its step sizes are not clamped here."""
    draw, sizes = Draw(1), dict(hidden_size=BASE['d_model'], state_size=BASE['d_state'], expand=BASE['expand'])
    u = draw.uniform(2, 11, BASE['d_model'], low=-2, high=2)
    for groups in (1, 2):
        config = BASE | {'groups': groups}
        heads = BASE['expand'] * BASE['d_model'] // BASE['head_dim']
        theirs = transformers.models.mamba2.modeling_mamba2.Mamba2Mixer(transformers.Mamba2Config(
            num_heads=heads, head_dim=BASE['head_dim'], n_groups=groups, chunk_size=4, num_hidden_layers=1, **sizes), 0)
        assert tuple(theirs.time_step_limit) == (0.0, math.inf)
        parameters = mamba2_parameters(draw, config)
        theirs.double().eval().load_state_dict(parameters)
        ours = torch.stack([mamba2(clip, parameters.__getitem__, config)[0] for clip in u])
        check(f'Mamba-2 with {groups} group(s) against transformers {transformers.__version__}', ours, theirs(u), 1e-6)
    theirs = transformers.models.mamba.modeling_mamba.MambaMixer(
        transformers.MambaConfig(num_hidden_layers=1, **sizes), 0)
    parameters = mamba1_parameters(draw, BASE)
    theirs.double().eval().load_state_dict(parameters)
    ours = torch.stack([mamba1(clip, parameters.__getitem__, BASE)[0] for clip in u])
    check(f'Mamba-1 against transformers {transformers.__version__}', ours, theirs(u), 1e-6)


def check_attention():
    """A padded batch in PyTorch's function against clips alone."""
    draw, width, d = Draw(2), BASE['attention_head_dim'], BASE['d_model']
    longest, queries = max(TEXT_LENGTHS), 7
    heads = lambda x: x.view(1, len(x), -1, width).transpose(1, 2)
    for causal in (True, False):
        for length in TEXT_LENGTHS:
            rows = longest + queries if causal else queries
            q, k, v = (draw.uniform(count, d, low=-3, high=3) for count in (rows, rows, rows))
            if not causal:
                k, v = k[:longest], v[:longest]
            padding = longest - length
            seen = torch.arange(len(k)) >= padding
            mask = seen.expand(rows, -1) & torch.ones(rows, len(k)).tril().bool() if causal else seen.expand(rows, -1)
            first = padding if causal else 0
            mask = mask | (torch.arange(rows) < first)[:, None]    # rows of padding need something to look at
            theirs = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=mask)
            theirs = theirs.transpose(1, 2).reshape(rows, d)[first:]
            ours = attention(q[first:], k[padding:], v[padding:], width, causal)
            kind = 'causal self-attention' if causal else 'cross-attention'
            check(f'{kind}, {padding} padded, against scaled_dot_product_attention', ours, theirs, 1e-12)


def check_ein_fft():
    """The transform as sums of sines and cosines, the products in real numbers."""
    draw, blocks, d = Draw(3), BASE['fft_blocks'], BASE['d_model']
    parameters = sublayer_parameters(draw, 'ff', BASE | {'channel_mixer': 'ein_fft'})
    (w1, b1), (w2, b2) = ((parameters[f'ein_fft.weight_{i}'], parameters[f'ein_fft.bias_{i}']) for i in (1, 2))
    x = draw.uniform(6, d, low=-2, high=2)
    angles = torch.outer(torch.arange(blocks), torch.arange(blocks)).double() * (2 * math.pi / blocks)
    cosine, sine = angles.cos() / math.sqrt(blocks), angles.sin() / math.sqrt(blocks)
    theirs = torch.empty_like(x)
    for frame, values in enumerate(x.view(-1, blocks, d // blocks)):
        out_re, out_im = torch.empty_like(values), torch.empty_like(values)
        for b in range(blocks):
            re, im = cosine[b] @ values, -sine[b] @ values
            re, im = (re @ w1[0, b] - im @ w1[1, b] + b1[0, b]).clamp(min=0), \
                     (re @ w1[1, b] + im @ w1[0, b] + b1[1, b]).clamp(min=0)
            re, im = re @ w2[0, b] - im @ w2[1, b] + b2[0, b], re @ w2[1, b] + im @ w2[0, b] + b2[1, b]
            out_re[b], out_im[b] = (v.sign() * (v.abs() - SHRINKAGE).clamp(min=0) for v in (re, im))
        theirs[frame] = (cosine @ out_re - sine @ out_im).flatten()
    check('Fourier blocks against sums of sines and cosines', ein_fft(x, parameters.__getitem__, blocks), theirs, 1e-12)


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    check_mixers()
    check_attention()
    check_ein_fft()
    metadata = {'torch': torch.__version__, 'safetensors': safetensors.__version__,
                'made_by': 'tools/reference/backbones.py'}
    total = 0
    for seed, (name, options) in enumerate(CASES.items(), 10):
        config = BASE | options
        path = folder / f'{name}.safetensors'
        save_file(golden(config, seed), path, metadata | {'config': json.dumps(config)})
        total += path.stat().st_size
        print(path, path.stat().st_size)
    print(f'{total} bytes in all')


if __name__ == '__main__':
    main()
