"""Small EnCodecs of the kind that MusicGen uses, and what transformers' EncodecModel makes of clips, in float64.

    python encodec.py --golden ../../crates/model/tests/golden

writes encodec_reflect/ and encodec_constant/ (config.json, model.safetensors) and a .safetensors beside each: clips, their
latents and codes, and what the codes decode to.
"""

import argparse
import json
import math
import pathlib

import numpy as np
import torch
import transformers
from transformers import EncodecConfig, EncodecModel

import tensor_file
from dac import signal

LEVELS = 4
RATIOS = [5, 4, 2]
RATE = 32000
# Whole tokens, a part of one more, and so short that it cannot be mirrored.
CLIPS = {"whole": 40 * 60, "part": 40 * 21 + 13, "short": 3}


def build(pad_mode, seed):
    frames = math.ceil(RATE / math.prod(RATIOS))
    config = EncodecConfig(
        sampling_rate=RATE, audio_channels=1, normalize=False, num_filters=8, hidden_size=16, upsampling_ratios=RATIOS,
        num_residual_layers=2, codebook_size=32, codebook_dim=16, use_causal_conv=False, pad_mode=pad_mode,
        use_conv_shortcut=False, target_bandwidths=[LEVELS * frames * 5 / 1000 + 0.001],
    )
    torch.manual_seed(seed)
    model = EncodecModel(config).double().eval()
    for name, value in model.named_parameters():
        if name.endswith("original0"):
            value.uniform_(0.7, 1.2)
            if ".block.3." in name:
                value.mul_(0.3)
        elif name.endswith("bias"):
            value.uniform_(-0.05, 0.05)
        elif "lstm.weight" in name:
            value.normal_(0, 0.15)
    model.decoder.layers[-1].conv.parametrizations.weight.original0.mul_(0.3)
    model = model.float().double()
    clip = torch.from_numpy(signal(CLIPS["whole"], RATE).astype(np.float32)).double()[None, None]
    rest = model.encoder(clip)[0].T
    for layer in model.quantizer.layers:
        # Rows as far from the middle as what they have to stand for.
        embed = (rest.mean(0) + rest.std(0) * torch.randn(32, 16, dtype=torch.float64)).float().double()
        layer.codebook.embed.copy_(embed)
        rest = rest - embed[layer.codebook.quantize(rest)]
    return config, model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=pathlib.Path, required=True)
    folder = parser.parse_args().golden
    torch.set_grad_enabled(False)
    for seed, pad_mode in enumerate(["reflect", "constant"]):
        config, model = build(pad_mode, seed)
        results = {}
        for name, length in CLIPS.items():
            samples = signal(length, RATE).astype(np.float32)
            clip = torch.from_numpy(samples).double()[None, None]
            codes = model.encode(clip, bandwidth=config.target_bandwidths[0]).audio_codes[0]
            results[f"samples_{name}"] = samples
            results[f"latents_{name}"] = model.encoder(clip)[0].T.contiguous().numpy()
            results[f"codes_{name}"] = codes[0].numpy().astype(np.int32)
            results[f"decoded_{name}"] = model.decoder(model.quantizer.decode(codes.transpose(0, 1)))[0, 0].numpy()
            print(pad_mode, name, codes.shape, [len(set(row.tolist())) for row in codes[0]], np.abs(results[f"decoded_{name}"]).max())
        place = folder / f"encodec_{pad_mode}"
        place.mkdir(exist_ok=True)
        (place / "config.json").write_text(json.dumps(config.to_dict(), indent=2, default=str) + "\n")
        tensors = {key: value.float().numpy() for key, value in model.state_dict().items()}
        tensor_file.write(place / "model.safetensors", tensors, {"format": "pt"})
        tensor_file.write(folder / f"encodec_{pad_mode}.safetensors", results, {"transformers": transformers.__version__})


if __name__ == "__main__":
    main()
