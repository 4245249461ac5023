"""DAC and EnCodec at their published sizes, filled from the hash, and what the reference libraries make of music.

EnCodec in float64. DAC's convolutions in f32, since 30 s of them in float64 take an hour, and its quantisers in float64.
"""

import math

import numpy as np
import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

import hashed

SECONDS = {"dac": 30, "encodec": 10}
BOOK_SHARE = 0.5


def margin_and_codes(scores):
    """The best of [t, codes] and its lead over the second."""
    best = scores.topk(2, dim=-1)
    return (best.values[:, 0] - best.values[:, 1]).numpy(), best.indices[:, 0].numpy().astype(np.int32)


def dac_recipe(name, shape):
    if name.endswith("alpha"):
        return 1.3, 0.6
    if name.endswith("bias"):
        return 0.0, 0.03
    fan = shape[0] * 2 if "conv_t1" in name else math.prod(shape[1:])
    # What is added to a residual stays small beside it.
    return 0.0, (0.4 if ".conv2." in name and "res_unit" in name else 1.0) / math.sqrt(fan)


def lookup(quantizer, projections):
    """Cosines [t, codes]."""
    normal = torch.nn.functional.normalize
    return normal(projections) @ normal(quantizer.codebook.weight).T


def fit_books(weights, model, latents):
    """Centres and scales each level's projection; its rows are what it projects at frames that the hash picks."""
    rest = latents
    frames = rest.shape[-1]
    for level, quantizer in enumerate(model.quantizer.quantizers):
        name = f"quantizer.quantizers.{level}."
        quantizer.in_proj.bias.zero_()
        projected = quantizer.in_proj(rest)
        scale = 3.0 * 0.8**level / projected.std(-1).mean().item()
        weights.set(name + "in_proj.weight", 0, weights.recipes[name + "in_proj.weight"][1] * scale)
        quantizer.in_proj.bias.copy_(-quantizer.in_proj(rest).mean((0, 2)).float())
        del weights.recipes[name + "in_proj.bias"], weights.recipes[name + "codebook.weight"]
        projected = quantizer.in_proj(rest)[0].T
        order = np.argsort(hashed.integers(name + "codebook.weight", 0, frames), kind="stable")
        rows = projected[torch.from_numpy(order[: quantizer.codebook.weight.shape[0]].copy())]
        quantizer.codebook.weight.copy_(rows.float())
        out = name + "out_proj.weight"
        back = 0.5 * rest.std().item() / (quantizer.codebook.weight.std().item() * math.sqrt(8))
        weights.set(out, 0, back * math.sqrt(3))
        chosen = quantizer.codebook.weight[torch.from_numpy(margin_and_codes(lookup(quantizer, projected))[1]).long()]
        rest = rest - quantizer.out_proj(chosen.T[None])


def dac_results(samples, latents, levels, decode):
    """Each level is given what the reference leaves of the level before, rounded to f32 as both sides see it."""
    results = {"samples": samples, "latents": latents[0].T.float().numpy(), "codes": [], "rests": [], "projections": [], "leads": []}
    rest, sums = latents, torch.zeros_like(latents)
    for quantizer in levels:
        rest = rest.float().double()
        projected = quantizer.in_proj(rest)
        lead, codes = margin_and_codes(lookup(quantizer, projected[0].T))
        back = quantizer.out_proj(quantizer.codebook.weight[torch.from_numpy(codes).long()].T[None])
        results["rests"].append(rest[0].T.float().numpy())
        results["projections"].append(projected[0].T.numpy())
        results["leads"].append(lead)
        results["codes"].append(codes)
        rest, sums = rest - back, sums + back
        print(f"level {len(results['codes'])}: {len(set(codes.tolist()))} codes used, smallest lead {lead.min():.1e}, "
              f"{(lead < 1e-5).sum()} below 1e-5")
        assert len(set(codes.tolist())) >= BOOK_SHARE * quantizer.codebook.weight.shape[0]
    results = {name: np.stack(value) if isinstance(value, list) else value for name, value in results.items()}
    decoded = decode(sums)[0, 0].double()
    print("peak of the decoded sound:", decoded.abs().max().item())
    assert 0.1 < decoded.abs().max() < 1
    results["decoded"] = decoded.numpy()
    return results


def dac_clip():
    """Music, filled up to whole tokens; and as it is."""
    samples = hashed.music(SECONDS["dac"], 44100)
    return torch.from_numpy(np.pad(samples, (0, -len(samples) % 512)))[None, None], samples


def dac(folder):
    config = DacConfig(
        encoder_hidden_size=64, downsampling_ratios=[2, 4, 8, 8], decoder_hidden_size=1536, upsampling_ratios=[8, 8, 4, 2],
        n_codebooks=9, codebook_size=1024, codebook_dim=8, sampling_rate=44100,
    )
    model = DacModel(config).eval()
    weights = hashed.Weights(model)
    weights.fill(dac_recipe)
    model.quantizer.double()
    clip, samples = dac_clip()
    latents = model.encoder(clip).double()
    fit_books(weights, model, latents)
    # The last layer ends in tanh, which should not be all there is: scaled by what it gives a part of the clip before.
    part = sum(quantizer.out_proj(quantizer.codebook.weight[:200].T[None]) for quantizer in model.quantizer.quantizers)
    before = []
    hook = model.decoder.conv2.register_forward_hook(lambda layer, given, gives: before.append(gives))
    model.decoder(part.float())
    hook.remove()
    name = "decoder.conv2.weight"
    weights.set(name, 0, weights.recipes[name][1] * 0.5 / before[0].abs().max().item())
    model.float().save_pretrained(folder)
    model.quantizer.double()
    results = dac_results(samples, latents, model.quantizer.quantizers, lambda sums: model.decoder(sums.float()))
    hashed.save(folder, results, weights.recipes)


def dac_original(folder):
    """The weights of the folder `dac` beside this one, as the original package holds and saves them."""
    import dac_original as reference

    published = DacModel.from_pretrained(folder.parent / "dac")
    model = reference.original()().eval()
    # Each of the three parts lists its layers in the same order in both.
    parts = ("encoder", "quantizer", "decoder")
    listed = lambda owner: [pair for part in parts for pair in getattr(owner, part).named_parameters(part)]
    found = iter(listed(published))
    stated = dict(listed(model))
    for name, value in stated.items():
        if name.endswith("weight_v") or name.endswith(".bias"):
            continue
        layer = name.removesuffix("weight_g")
        if layer == name:
            other, source = next(found)
            assert source.shape == value.shape, (name, other)
            value.copy_(source)
            continue
        pair = [next(found), next(found)]
        source, bias = [next(v for key, v in pair if key.endswith(end)) for end in (".weight", ".bias")]
        stated[layer + "weight_v"].copy_(source)
        value.copy_(source.double().flatten(1).norm(dim=1).reshape(value.shape))
        stated[layer + "bias"].copy_(bias)
    assert next(found, None) is None
    model.save(folder / "weights.pth", package=False)
    model.quantizer.double()
    clip, samples = dac_clip()
    latents = model.encoder(clip).double()
    results = dac_results(samples, latents, model.quantizer.quantizers, lambda sums: model.decoder(sums.float()))
    hashed.tensor_file.write(folder / "expected.safetensors", results, {"recipes": "{}", "torch": torch.__version__})


def encodec_config(pad_mode):
    """EnCodec as MusicGen has it."""
    return EncodecConfig(
        sampling_rate=32000, audio_channels=1, normalize=False, num_filters=64, hidden_size=128, upsampling_ratios=[8, 5, 4, 4],
        num_residual_layers=1, codebook_size=2048, codebook_dim=128, use_causal_conv=False, pad_mode=pad_mode,
        use_conv_shortcut=False, target_bandwidths=[2.2], num_lstm_layers=2,
    )


def encodec_recipe(parameters, prefix=""):
    """Lengths near 1, as what a layer gives then has the scale of what it takes."""

    def recipe(name, shape):
        if name.endswith("original0"):
            rows, columns, taps = parameters[prefix + name[:-1] + "1"].shape
            # Of a transposed layer, rows are inputs; an output is the sum of two taps of each.
            kept = math.sqrt(taps / 4) if "decoder" in name and rows == 2 * columns and taps % 2 == 0 else 1.0
            kept *= 0.3 if ".block.3." in name else 1.0
            return kept, 0.1 * kept
        if name.endswith("original1"):
            return 0.0, 1 / math.sqrt(math.prod(shape[1:]))
        return 0.0, 0.03

    return recipe


def fit_encodec(weights, model, clip, prefix=""):
    """Rows of the codebooks as far from the middle as what they stand for; a last layer of sensible loudness."""
    rest = model.encoder(clip)[0].T
    sums = torch.zeros_like(rest)
    draw = hashed.values
    for level, layer in enumerate(model.quantizer.layers):
        name = f"{prefix}quantizer.layers.{level}.codebook.embed"
        unit = torch.from_numpy(draw(name, tuple(layer.codebook.embed.shape), 0, math.sqrt(3))).double()
        rows = (rest.mean(0) + rest.std(0) * unit).float().double()
        layer.codebook.embed.copy_(rows)
        chosen = rows[layer.codebook.quantize(rest)]
        rest, sums = rest - chosen, sums + chosen
    peak = model.decoder(sums.T[None]).abs().max().item()
    last = f"{prefix}decoder.layers.{len(model.decoder.layers) - 1}.conv.parametrizations.weight.original0"
    weights.set(last, *(0.5 / peak * part for part in weights.recipes[last]))


def encodec_results(model, samples):
    clip = torch.from_numpy(samples).double()[None, None]
    latents = model.encoder(clip)[0].T
    results = {"samples": samples, "latents": latents.float().numpy(), "codes": [], "rests": [], "leads": []}
    rest, sums = latents, torch.zeros_like(latents)
    for layer in model.quantizer.layers:
        rest = rest.float().double()
        rows = layer.codebook.embed
        # Relative to the row's power, so that it is as free of scale as a cosine.
        scores = (rest @ rows.T - rows.square().sum(1) / 2) / rows.square().sum(1).mean()
        lead, codes = margin_and_codes(scores)
        assert (codes == layer.codebook.quantize(rest).numpy()).mean() > 0.99
        results["rests"].append(rest.float().numpy())
        results["leads"].append(lead)
        results["codes"].append(codes)
        chosen = rows[torch.from_numpy(codes).long()]
        rest, sums = rest - chosen, sums + chosen
        print(f"level {len(results['codes'])}: {len(set(codes.tolist()))} codes used, smallest lead {lead.min():.1e}")
    results = {name: np.stack(value) if isinstance(value, list) else value for name, value in results.items()}
    decoded = model.decoder(sums.T[None])[0, 0]
    print("peak of the decoded sound:", decoded.abs().max().item())
    assert 0.1 < decoded.abs().max() < 1
    results["decoded"] = decoded.numpy()
    return results


def encodec(folder, pad_mode):
    model = EncodecModel(encodec_config(pad_mode)).eval()
    weights = hashed.Weights(model)
    weights.fill(encodec_recipe(weights.parameters))
    model.double()
    samples = hashed.music(SECONDS["encodec"], 32000)
    fit_encodec(weights, model, torch.from_numpy(samples).double()[None, None])
    model.float().save_pretrained(folder)
    model.double()
    hashed.save(folder, encodec_results(model, samples), weights.recipes)
