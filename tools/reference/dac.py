"""A small DAC in Hugging Face's layout, and what transformers' DacModel makes of a test signal, in float64.

    python dac.py --golden ../../crates/model/tests/golden

writes dac/config.json, dac/model.safetensors and dac.safetensors: the signal, the projections and codes of all levels, the
latents of the codes, and the samples of the first 1 and all levels. Weights are drawn, then scaled level by level so that
sound comes out at a sensible loudness and no code wins everywhere.
"""

import argparse
import json
import math
import pathlib

import numpy as np
import torch
import transformers
from transformers import DacConfig, DacModel

import tensor_file

SIZES = dict(
    encoder_hidden_size=8,
    downsampling_ratios=[2, 4],
    decoder_hidden_size=24,
    upsampling_ratios=[4, 2],
    n_codebooks=4,
    codebook_size=32,
    codebook_dim=4,
    sampling_rate=44100,
)


def signal(samples, rate):
    """Two gliding tones and noise."""
    t = np.arange(samples) / rate
    noise = np.random.default_rng(5).uniform(-0.1, 0.1, samples)
    return 0.4 * np.sin(2 * math.pi * (220 + 300 * t) * t) + 0.2 * np.sin(2 * math.pi * 1870 * t) + noise


def build(sizes, seed, clip):
    """A DacModel in float64 whose layers keep the scale of `clip`."""
    config = DacConfig(**sizes)
    torch.manual_seed(seed)
    model = DacModel(config).double().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("alpha"):
                value.uniform_(0.2, 2.5)
            elif name.endswith("bias"):
                value.uniform_(-0.05, 0.05)
            elif "codebook" not in name:
                fan = value[0].numel() if "conv_t1" not in name else value.shape[0] * 2
                # What is added to a residual stays small beside it.
                gain = 0.4 if ".conv2." in name and "res_unit" in name else 1.0
                value.normal_(0, gain / math.sqrt(fan))
        # The last layer ends in tanh, which should not be all there is.
        model.decoder.conv2.weight.mul_(0.1)
        hidden = model.encoder(clip)
        for level, quantizer in enumerate(model.quantizer.quantizers):
            scale = 3.0 * 0.8**level
            projected = quantizer.in_proj(hidden)
            quantizer.in_proj.weight.mul_(scale / projected.std())
            quantizer.codebook.weight.normal_(0, scale)
            quantizer.out_proj.weight.normal_(0, 0.5 / math.sqrt(sizes["codebook_dim"]) / scale)
    return config, model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=pathlib.Path, required=True)
    folder = parser.parse_args().golden
    torch.set_grad_enabled(False)
    # Not a whole number of tokens, and more of them than Mambo decodes at a time.
    samples = signal(8 * 300 - 3, SIZES["sampling_rate"]).astype(np.float32)
    hop = math.prod(SIZES["downsampling_ratios"])
    clip = torch.from_numpy(np.pad(samples, (0, -len(samples) % hop))).double()[None, None]
    config, model = build(SIZES, 3, clip)
    # The weights are what the file holds: f32.
    model = model.float().double()
    encoded = model.encode(clip)
    results = {
        "samples": samples,
        "projections": encoded.projected_latents[0].T.contiguous().numpy(),
        "codes": encoded.audio_codes[0].numpy().astype(np.int32),
        "latents": model.encoder(clip)[0].T.contiguous().numpy(),
    }
    for levels in (1, SIZES["n_codebooks"]):
        quantized = model.quantizer.from_codes(encoded.audio_codes[:, :levels])[0]
        results[f"decoded_{levels}"] = model.decoder(quantized)[0, 0].numpy()
    for level, row in enumerate(results["codes"]):
        print(f"level {level}: {len(set(row.tolist()))} of {SIZES['codebook_size']} codes used")
    print("peak of the decoded sound:", np.abs(results[f"decoded_{SIZES['n_codebooks']}"]).max())
    tensors = {name: value.detach().float().numpy() for name, value in model.state_dict().items()}
    (folder / "dac").mkdir(exist_ok=True)
    (folder / "dac/config.json").write_text(json.dumps(config.to_dict(), indent=2, default=str) + "\n")
    note = {"torch": torch.__version__, "transformers": transformers.__version__}
    tensor_file.write(folder / "dac/model.safetensors", tensors, {"format": "pt"})
    tensor_file.write(folder / "dac.safetensors", results, note)


if __name__ == "__main__":
    main()
