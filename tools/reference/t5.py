"""Small T5 encoders in Hugging Face's layout, a tokenizer of T5's kind, and what transformers and sentencepiece make of
them, in float64.

    python t5.py --golden ../../crates/model/tests/golden --corpus FILE.txt [--corpus FILE.txt]

writes t5/ (T5's feed-forward) and flan_t5/ (gated), each with config.json and model.safetensors, the latter with
tokenizer.json too; t5.safetensors and flan_t5.safetensors: token ids of some lengths, their states, and those of a
padded batch; t5_tokens.json: prompts and their ids. The corpus is only what the tokenizer's pieces are learnt from.
"""

import argparse
import base64
import io
import json
import pathlib
import random

import numpy as np
import sentencepiece
import torch
import transformers
from sentencepiece import sentencepiece_model_pb2
from transformers import T5Config, T5EncoderModel

import tensor_file

VOCABULARY = 1000
SENTINELS = 100
LENGTHS = (1, 2, 7, 60, 300, 512)
SIZES = dict(
    d_model=48, d_kv=16, d_ff=80, num_layers=3, num_heads=4, vocab_size=VOCABULARY + SENTINELS + 4,
    relative_attention_num_buckets=32, relative_attention_max_distance=128, layer_norm_epsilon=1e-6,
)


def network(folder, name, kind, seed):
    """One encoder and its states."""
    torch.manual_seed(seed)
    config = T5Config(**SIZES, feed_forward_proj=kind, is_encoder_decoder=False, use_cache=False, dropout_rate=0.0)
    model = T5EncoderModel(config).double().eval()
    for part, value in model.named_parameters():
        if "layer_norm" in part:
            value.uniform_(0.5, 1.5)
        elif "relative_attention_bias" in part:
            value.normal_(0, 1.0)
        elif "shared" in part or "embed_tokens" in part:
            value.normal_(0, 1.0)
        else:
            # Scores are not scaled by the width of a head.
            narrow = SIZES["d_kv"] ** -0.25 if ".q." in part or ".k." in part else 1.0
            value.normal_(0, narrow / value.shape[1] ** 0.5)
    model = model.float().double()
    results = {}
    draw = np.random.default_rng(seed)
    for length in LENGTHS:
        ids = draw.integers(3, VOCABULARY, length)
        ids[-1] = 1
        states = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
        results[f"ids_{length}"] = ids.astype(np.int32)
        results[f"states_{length}"] = states.numpy()
    # Padding is not heard, but has states of its own.
    ids = np.concatenate([results["ids_7"], np.zeros(9, np.int32)])
    mask = torch.tensor([[1] * 7 + [0] * 9])
    results["ids_padded"] = ids
    results["states_padded"] = model(input_ids=torch.from_numpy(ids)[None].long(), attention_mask=mask).last_hidden_state[0].numpy()
    (folder / name).mkdir(exist_ok=True)
    kept = {key: value for key, value in config.to_dict().items() if key in SIZES or key == "feed_forward_proj"}
    (folder / name / "config.json").write_text(json.dumps({"model_type": "t5", **kept}, indent=2) + "\n")
    tensors = {key: value.float().numpy() for key, value in model.state_dict().items() if key != "encoder.embed_tokens.weight"}
    # Parts of the decoder come along in published files.
    tensors["decoder.final_layer_norm.weight"] = np.ones(SIZES["d_model"], np.float32)
    tensor_file.write(folder / name / "model.safetensors", tensors, {"format": "pt"})
    tensor_file.write(folder / f"{name}.safetensors", results, {"torch": torch.__version__, "transformers": transformers.__version__})


def tokenizer(corpora):
    """A sentencepiece model trained as T5's was, and the same as tokenizer.json."""
    out = io.BytesIO()
    lines = [line for path in corpora for line in path.read_text(errors="ignore").splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=VOCABULARY, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=0.9995, num_threads=1,
        normalization_rule_name="nmt_nfkc", hard_vocab_limit=False,
    )
    return out.getvalue()


def as_published(model):
    """The tokenizer.json that stands beside T5's and FLAN-T5's weights, of another sentencepiece model."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    vocabulary = [[piece.piece, piece.score] for piece in proto.pieces]
    special = [(0, "<pad>"), (1, "</s>"), (2, "<unk>")]
    special += [(len(vocabulary) + i, f"<extra_id_{SENTINELS - 1 - i}>") for i in range(SENTINELS)]
    vocabulary += [[name, 0.0] for _, name in special[3:]]
    added = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **added} for number, name in special],
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode(),
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "\u2581", "str_rep": "\u2581", "add_prefix_space": True},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "str_rep": "\u2581", "add_prefix_space": True},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary},
    }


def prompts(lines):
    """A thousand prompts: of the field, of other scripts, odd ones."""
    draw = random.Random(4)
    genres = "ambient techno jazz rock folk metal classical hip-hop chiptune disco".split()
    traits = "calm dark fast slow bright distorted melancholic uplifting driving sparse".split()
    instruments = "piano strings guitar drums bass flute synthesizer choir organ harp".split()
    odd = [
        "", " ", "  two  spaces  ", "\ttab\nand newline", "</s>", "a </s> b", "<pad>", "<extra_id_0>", "<unk>", "\u2581", "▁▁x",
        "naïve café", "ﬁne ligatures ﬀ", "１２３ full width ＡＢＣ", "Ⅷ roman", "½ cup", "e\u0301 combined", "\u00a0nbsp\u00a0",
        "\u200bzero\u200bwidth", "日本の音楽", "сладкая музыка", "موسيقى هادئة", "음악", "🎵🎶 emoji", "a" * 600, "x " * 900,
        "ＴＥＣＨＮＯ!!!", "“quotes” – dashes — …", "\u0000nul", "\ufeffbom", "~!@#$%^&*()_+", "it's 120 BPM, 4/4", "Ω≈ç√∫˜µ≤≥÷",
    ]
    drawn = []
    while len(odd) + len(drawn) < 1000:
        kind = draw.random()
        if kind < 0.6:
            drawn.append(f"{draw.choice(traits)} {draw.choice(genres)} with {draw.choice(instruments)}, {draw.randint(60, 190)} BPM")
        elif kind < 0.9:
            drawn.append(draw.choice(lines)[: draw.randint(1, 200)])
        else:
            drawn.append("".join(chr(draw.choice([draw.randint(32, 126), draw.randint(0xA0, 0x24F), draw.randint(0x370, 0x52F), draw.randint(0x3040, 0x30FF)])) for _ in range(draw.randint(1, 30))))
    return odd + drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=pathlib.Path, required=True)
    parser.add_argument("--corpus", type=pathlib.Path, action="append", required=True)
    arguments = parser.parse_args()
    folder = arguments.golden
    torch.set_grad_enabled(False)
    network(folder, "t5", "relu", 1)
    network(folder, "flan_t5", "gated-gelu", 2)
    model = tokenizer(arguments.corpus)
    published = json.dumps(as_published(model), ensure_ascii=False, indent=0)
    (folder / "flan_t5/tokenizer.json").write_text(published + "\n")
    slow = sentencepiece.SentencePieceProcessor(model_proto=model)
    lines = [line for corpus in arguments.corpus for line in corpus.read_text(errors="ignore").splitlines() if line.strip()]
    cases = [{"text": text, "ids": (slow.encode(text) + [1])} for text in prompts(lines)]
    (folder / "t5_tokens.json").write_text(json.dumps(cases, ensure_ascii=True, indent=0) + "\n")


if __name__ == "__main__":
    main()
