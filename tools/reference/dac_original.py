"""A small DAC of the original package: its checkpoint and what it makes of a signal, in float64.

    pip install --target dac_package --no-deps descript-audio-codec==1.0.0 descript-audiotools==0.7.2 einops
    PYTHONPATH=dac_package python dac_original.py --golden ../../crates/model/tests/golden

writes dac_original.pth, saved as the released weights are (`state_dict` and `metadata`, layers weight-normed), and
dac_original.safetensors. The package is imported without what it needs for training and for files of sound.
"""

import argparse
import importlib.abc
import importlib.machinery
import pathlib
import sys
import unittest.mock

import numpy as np
import torch

import tensor_file
from dac import SIZES, signal

UNUSED = {"argbind", "docstring_parser", "ffmpy", "flatten_dict", "importlib_resources", "IPython", "julius", "librosa"}
UNUSED |= {"markdown2", "matplotlib", "pesq", "pyloudnorm", "pystoi", "randomname", "rich", "scipy", "soundfile"}
UNUSED |= {"tensorboard", "torch_stoi", "torchaudio", "tqdm"}


class Stand(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for packages that are imported and never called here."""

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in UNUSED or name == "torch.utils.tensorboard":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = unittest.mock.MagicMock()
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module):
        pass


def original():
    """The class DAC of the original package; the script beside this one has the same name."""
    sys.meta_path.insert(0, Stand())
    del sys.modules["dac"]
    here = str(pathlib.Path(__file__).parent.resolve())
    sys.path = [place for place in sys.path if pathlib.Path(place or ".").resolve() != pathlib.Path(here)]
    from dac import DAC

    return DAC


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=pathlib.Path, required=True)
    folder = parser.parse_args().golden.resolve()
    torch.set_grad_enabled(False)
    torch.manual_seed(7)
    model = original()(
        encoder_dim=SIZES["encoder_hidden_size"],
        encoder_rates=SIZES["downsampling_ratios"],
        decoder_dim=SIZES["decoder_hidden_size"],
        decoder_rates=SIZES["upsampling_ratios"],
        n_codebooks=SIZES["n_codebooks"],
        codebook_size=SIZES["codebook_size"],
        codebook_dim=SIZES["codebook_dim"],
        sample_rate=SIZES["sampling_rate"],
    ).eval()
    for name, value in model.named_parameters():
        if name.endswith("alpha"):
            value.uniform_(0.2, 2.5)
        elif name.endswith("bias"):
            value.uniform_(-0.05, 0.05)
        elif name.endswith("weight_g"):
            # The second convolution of a residual unit adds little to what is there.
            value.uniform_(0.2, 0.3) if name.endswith("block.3.weight_g") else value.uniform_(0.7, 1.2)
        elif name.endswith("codebook.weight"):
            value.normal_(0, 0.3)
    model.save(folder / "dac_original.pth", package=False)
    samples = signal(8 * 120, SIZES["sampling_rate"]).astype(np.float32)
    model = model.double()
    clip = torch.from_numpy(samples).double()[None, None]
    _, codes, projections, _, _ = model.encode(clip)
    decoded = model.decode(model.quantizer.from_codes(codes)[0])[0, 0]
    for level, row in enumerate(codes[0].tolist()):
        print(f"level {level}: {len(set(row))} of {SIZES['codebook_size']} codes used")
    print("peak of the decoded sound:", decoded.abs().max().item())
    results = {
        "samples": samples,
        "codes": codes[0].numpy().astype(np.int32),
        "projections": projections[0].T.contiguous().numpy(),
        "decoded": decoded.numpy(),
    }
    tensor_file.write(folder / "dac_original.safetensors", results, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
