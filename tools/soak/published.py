"""Published models at full size with weights from a hash, and what the reference libraries make of inputs, in float64.

    python published.py PART FOLDER

PART is dac, dac_original (after dac), t5, flan_t5, encodec_reflect, encodec_constant or musicgen. Writes FOLDER/PART:
config.json and model.safetensors as the library saves them (weights.pth for dac_original) and expected.safetensors.
"""

import argparse
import pathlib
import shutil

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers import MusicgenConfig, MusicgenDecoderConfig, MusicgenForConditionalGeneration, T5Config, T5ForConditionalGeneration

import neural_codecs as codecs
import hashed

LENGTHS = (1, 7, 64, 512)
BOOKS, CODES, FORCED, STEPS, GUIDANCE = 4, 2048, 20, 200, 3.0
TOKENIZER = pathlib.Path(__file__).resolve().parents[2] / "crates/model/tests/golden/flan_t5/tokenizer.json"


def t5_config(gated):
    """T5-base and FLAN-T5-base."""
    kind = dict(d_ff=2048, feed_forward_proj="gated-gelu", tie_word_embeddings=False) if gated else dict(d_ff=3072, feed_forward_proj="relu")
    return T5Config(
        vocab_size=32128, d_model=768, d_kv=64, num_layers=12, num_heads=12, relative_attention_num_buckets=32,
        relative_attention_max_distance=128, layer_norm_epsilon=1e-6, dropout_rate=0.0, decoder_start_token_id=0, **kind,
    )


def t5_recipe(name, shape):
    if "layer_norm" in name:
        return 1.0, 0.2
    if "relative_attention_bias" in name or "shared" in name or "embed_tokens" in name:
        return 0.0, 1.0
    # Scores are not scaled by the width of a head.
    return 0.0, (64**-0.25 if ".q." in name or ".k." in name else 1.0) / shape[1] ** 0.5


def text_ids(length):
    """Ids that end as texts do."""
    ids = 3 + hashed.integers(f"ids {length}", 0, length).astype(np.int64) % 32097
    ids[-1] = 1
    return torch.from_numpy(ids)[None]


def t5(folder, gated):
    model = T5ForConditionalGeneration(t5_config(gated)).eval()
    weights = hashed.Weights(model)
    weights.fill(t5_recipe)
    model.save_pretrained(folder)
    shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    encoder = model.get_encoder().double()
    results = {}
    for length in LENGTHS:
        ids = text_ids(length)
        results[f"ids_{length}"] = ids[0].numpy().astype(np.int32)
        results[f"states_{length}"] = encoder(input_ids=ids).last_hidden_state[0].numpy()
        # The last third is padding, which is not heard but has states of its own.
        heard = length - length // 3
        mask = (torch.arange(length) < heard).long()[None]
        results[f"heard_{length}"] = np.array([heard], np.int32)
        results[f"masked_{length}"] = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[0].numpy()
        print(length, "tokens, root of the mean square:", np.sqrt((results[f"states_{length}"] ** 2).mean()))
    hashed.save(folder, results, weights.recipes)


def musicgen_config():
    """MusicGen-small."""
    decoder = MusicgenDecoderConfig(
        vocab_size=CODES, num_codebooks=BOOKS, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, ffn_dim=4096,
        max_position_embeddings=2048, dropout=0.0, pad_token_id=CODES, bos_token_id=CODES, activation_function="gelu",
    )
    audio = codecs.encodec_config("reflect")
    return MusicgenConfig(text_encoder=t5_config(False).to_dict(), audio_encoder=audio.to_dict(), decoder=decoder.to_dict())


def musicgen_recipe(parameters):
    encodec = codecs.encodec_recipe(parameters, "audio_encoder.")

    def recipe(name, shape):
        if name.startswith("audio_encoder."):
            return encodec(name.removeprefix("audio_encoder."), shape)
        if name.startswith("text_encoder."):
            return t5_recipe(name, shape)
        if "norm" in name:
            return (1.0, 0.2) if name.endswith("weight") else (0.0, 0.1)
        if len(shape) == 1 or "embed_tokens" in name:
            return 0.0, 0.1 if len(shape) == 1 else 0.5
        # Far enough apart that the most likely code is seldom in doubt.
        return 0.0, (3.0 if "lm_heads" in name else 1.0) / shape[1] ** 0.5

    return recipe


def fresh_cache():
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def advance(decoder, column, heard, mask, cache):
    """Logits [streams, books, codes] after one more column [books]."""
    streams = len(heard)
    out = decoder(
        input_ids=column.repeat(streams)[:, None], encoder_hidden_states=heard, encoder_attention_mask=mask,
        past_key_values=cache, use_cache=True,
    )
    return out.logits[:, -1].reshape(streams, BOOKS, CODES)


def musicgen(folder):
    model = MusicgenForConditionalGeneration(musicgen_config()).eval()
    weights = hashed.Weights(model)
    weights.fill(musicgen_recipe(weights.parameters))
    codec = model.audio_encoder.double()
    clip = torch.from_numpy(hashed.music(5, 32000)).double()[None, None]
    codecs.fit_encodec(weights, codec, clip, "audio_encoder.")
    codec.float()
    model.save_pretrained(folder)
    shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    ids = text_ids(16)
    told = model.enc_to_dec_proj.double()(model.text_encoder.double()(input_ids=ids).last_hidden_state)
    results = {"ids": ids[0].numpy().astype(np.int32), "heard": told[0].numpy()}
    # The other stream hears zeros, none of which it may attend to.
    heard = torch.cat([told, torch.zeros_like(told)])
    mask = torch.stack([torch.ones(ids.shape[1]), torch.zeros(ids.shape[1])]).long()
    decoder = model.decoder.double()
    columns = torch.from_numpy(hashed.integers("columns", 0, FORCED * BOOKS).astype(np.int64) % CODES).reshape(FORCED, BOOKS)
    columns[0] = CODES
    cache = fresh_cache()
    results["columns"] = columns.numpy().astype(np.int32)
    results["logits"] = np.stack([advance(decoder, column, heard, mask, cache).numpy() for column in columns])
    cache, column, made, leads = fresh_cache(), torch.full((BOOKS,), CODES), [], []
    for step in range(STEPS + BOOKS - 1):
        with_text, without = advance(decoder, column, heard, mask, cache)
        best = (without + GUIDANCE * (with_text - without)).topk(2, dim=-1)
        column = best.indices[:, 0].clone()
        leads.append((best.values[:, 0] - best.values[:, 1])[step >= torch.arange(BOOKS)].min().item())
        column[step < torch.arange(BOOKS)] = CODES
        made.append(column)
    made = torch.stack(made)
    frames = torch.stack([made[k : k + STEPS, k] for k in range(BOOKS)])
    print("codes used:", [len(set(row.tolist())) for row in frames], "smallest lead of a code:", min(leads),
          "deviation of logits:", results["logits"].std())
    results["greedy"] = frames.numpy().astype(np.int32)
    codec = codec.double()
    results["sound"] = codec.decoder(codec.quantizer.decode(frames[:, None]))[0, 0].numpy()
    print("peak of the sound:", np.abs(results["sound"]).max())
    hashed.save(folder, results, weights.recipes)


PARTS = {
    "dac": codecs.dac,
    "dac_original": codecs.dac_original,
    "t5": lambda folder: t5(folder, False),
    "flan_t5": lambda folder: t5(folder, True),
    "encodec_reflect": lambda folder: codecs.encodec(folder, "reflect"),
    "encodec_constant": lambda folder: codecs.encodec(folder, "constant"),
    "musicgen": musicgen,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=pathlib.Path)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    folder = arguments.folder.resolve() / arguments.part
    folder.mkdir(parents=True, exist_ok=True)
    PARTS[arguments.part](folder)


if __name__ == "__main__":
    main()
