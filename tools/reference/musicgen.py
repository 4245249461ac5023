"""A small MusicGen in Hugging Face's layout, and what transformers makes of a prompt with it, in float64.

    python musicgen.py --golden ../../crates/model/tests/golden

after t5.py, whose tokenizer it takes. Writes musicgen/ (config.json, model.safetensors, tokenizer.json) and
musicgen.safetensors: the ids of a prompt, what the decoder hears of them, logits of the stream that hears it and of the one
that does not for given columns, the most likely codes of 200 steps at guidance 3, and what they sound like.
"""

import argparse
import json
import pathlib
import shutil

import numpy as np
import torch
import transformers
from transformers import EncodecConfig, MusicgenConfig, MusicgenDecoderConfig, MusicgenForConditionalGeneration, T5Config

import encodec
import t5
import tensor_file

CODES, BOOKS, STEPS, GUIDANCE = 32, 4, 200, 3.0


def build(seed):
    audio, codec = encodec.build("reflect", 0)
    text = T5Config(**t5.SIZES, feed_forward_proj="relu", dropout_rate=0.0)
    decoder = MusicgenDecoderConfig(
        vocab_size=CODES, num_codebooks=BOOKS, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=80,
        max_position_embeddings=512, dropout=0.0, pad_token_id=CODES, bos_token_id=CODES,
    )
    config = MusicgenConfig(text_encoder=text.to_dict(), audio_encoder=audio.to_dict(), decoder=decoder.to_dict())
    torch.manual_seed(seed)
    model = MusicgenForConditionalGeneration(config).double().eval()
    for name, value in model.named_parameters():
        if name.startswith("audio_encoder."):
            continue
        if "norm" in name:
            value.uniform_(0.5, 1.5) if name.endswith("weight") else value.uniform_(-0.2, 0.2)
        elif value.dim() > 1:
            gain = 0.5 if "embed_tokens" in name or "shared" in name else 1.0 / value.shape[1] ** 0.5
            # Far enough apart that the most likely code is never in doubt.
            value.normal_(0, 3 * gain if "lm_heads" in name else gain)
    model.audio_encoder.load_state_dict(codec.state_dict())
    return config, model.float().double()


def logits(model, columns, states, mask):
    """[K, T, codes] for columns [K, T]."""
    out = model.decoder(input_ids=columns, encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False)
    return out.logits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=pathlib.Path, required=True)
    folder = parser.parse_args().golden
    torch.set_grad_enabled(False)
    config, model = build(11)
    ids = torch.from_numpy(np.random.default_rng(3).integers(3, t5.VOCABULARY, 9))[None]
    ids[0, -1] = 1
    heard = model.enc_to_dec_proj(model.text_encoder(input_ids=ids).last_hidden_state)
    # The other stream hears zeros, none of which it may attend to.
    branches = [(heard, torch.ones_like(ids)), (torch.zeros_like(heard), torch.zeros_like(ids))]
    columns = torch.from_numpy(np.random.default_rng(4).integers(0, CODES, (BOOKS, 12)))
    columns[:, 0] = CODES
    results = {
        "ids": ids[0].numpy().astype(np.int32),
        "heard": heard[0].numpy(),
        "columns": columns.numpy().astype(np.int32),
        "logits": np.stack([logits(model, columns, *branch).numpy() for branch in branches]),
    }
    column = torch.full((BOOKS, 1), CODES)
    narrowest = 1e9
    for step in range(STEPS + BOOKS - 1):
        told, untold = (logits(model, column, *branch)[:, -1] for branch in branches)
        guided = untold + GUIDANCE * (told - untold)
        best = guided.topk(2, dim=-1)
        narrowest = min(narrowest, (best.values[:, 0] - best.values[:, 1]).min().item())
        codes = best.indices[:, 0]
        codes[step < torch.arange(BOOKS)] = CODES
        column = torch.cat([column, codes[:, None]], 1)
    frames = torch.stack([column[k, 1 + k : 1 + k + STEPS] for k in range(BOOKS)])
    print("codes used:", [len(set(row.tolist())) for row in frames], "smallest lead of a code:", narrowest)
    results["greedy"] = frames.numpy().astype(np.int32)
    audio = model.audio_encoder
    results["sound"] = audio.decoder(audio.quantizer.decode(frames[:, None]))[0, 0].numpy()
    place = folder / "musicgen"
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config.to_dict(), indent=1, default=str) + "\n")
    tensors = {key: value.float().numpy() for key, value in model.state_dict().items()}
    del tensors["text_encoder.encoder.embed_tokens.weight"]
    tensor_file.write(place / "model.safetensors", tensors, {"format": "pt"})
    shutil.copyfile(folder / "flan_t5/tokenizer.json", place / "tokenizer.json")
    tensor_file.write(folder / "musicgen.safetensors", results, {"transformers": transformers.__version__})


if __name__ == "__main__":
    main()
