"""Train GPT2LMHeadModel of transformers and minigpt in lockstep, with the same masks.

Weights, batches and masks are the same; dropout 0.1 (embd_pdrop, attn_pdrop, resid_pdrop), AdamW,
clipping. There are two pairs of runs: minigpt's masks in transformers, by parity.hooks; and the
masks that transformers draws from its seed in minigpt.

    python examples/lockstep/transformers_gpt2.py [--steps 100] [--out docs/transformers.json]
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from flax import nnx
from torch import nn

import lockstep
from minigpt.config import PRESETS, DropoutConfig
from minigpt.data import build_tokenizer, load_text, make_batch
from minigpt.interop import gpt2_weights, plain_parameters

RATE, SEED = 0.1, 1337
RATES = DropoutConfig(embed=RATE, attn_weights=RATE, attn_out=RATE, mlp_out=RATE)
SITES = {
    "attn_weights": "attn/F.dropout",
    "attn_out": "attn/resid_dropout",
    "mlp_out": "mlp/dropout",
}


class Logits(nn.Module):
    """GPT2LMHeadModel from tokens to logits: its own loss rounds them to float32."""

    def __init__(self, gpt2):
        super().__init__()
        self.gpt2 = gpt2

    def forward(self, tokens):
        return self.gpt2(tokens).logits


def build_gpt2(gpt, vocab):
    """GPT2LMHeadModel in training mode with the weights of minigpt's GPT."""
    sizes: dict[str, Any] = {"vocab_size": vocab, "n_positions": gpt.config.block_size}
    sizes |= {name: getattr(gpt.config, name) for name in ("n_layer", "n_head", "n_embd")}
    sizes |= {"attn_implementation": "eager"}
    rates = {"embd_pdrop": RATE, "attn_pdrop": RATE, "resid_pdrop": RATE}
    tokens: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(**sizes, **rates, **tokens)
    gpt2 = transformers.GPT2LMHeadModel(config)
    arrays = gpt2_weights(plain_parameters(nnx.split(gpt)[1]), gpt.config.n_layer)
    missing = gpt2.load_state_dict(
        {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, strict=False
    )
    assert missing.missing_keys == ["lm_head.weight"], missing  # it is the token table
    return Logits(gpt2).train()


def name_in_gpt2(site):
    """The name of one of minigpt's sites in GPT2LMHeadModel."""
    if site == "embed":
        return "gpt2/transformer/drop"
    _, block, name = site.split("/")
    return f"gpt2/transformer/h/{block}/{SITES[name]}"


def compare_pairs(config, vocab, batches, dtype):
    """Losses of the two pairs: {name: (minigpt's, transformers')}."""
    with jax.enable_x64(dtype == "float64"):
        args = (config, vocab, batches, dtype)
        masks_at = lockstep.draw_our_masks(config)

        def renamed_masks_at(i):
            return {name_in_gpt2(site): mask for site, mask in masks_at(i).items()}

        return {
            "our masks in transformers": (
                lockstep.train_minigpt(*args),
                lockstep.train_torch(renamed_masks_at, *args, build_gpt2),
            ),
            "transformers' masks in minigpt": (
                lockstep.train_minigpt_with_masks(lockstep.draw_torch_masks(config), *args),
                lockstep.train_torch(None, *args, build_gpt2),
            ),
        }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("docs/transformers.json"))
    options = parser.parse_args(arguments)
    preset = PRESETS["shakespeare-char-cpu"]
    model = dataclasses.replace(
        preset.model, n_layer=options.layers, dropout=RATES, bias=True, activation="gelu_tanh"
    )
    config = dataclasses.replace(preset, steps=options.steps, seed=SEED, model=model)
    text = load_text()
    tokenizer = build_tokenizer("char", text.train)
    tokens = tokenizer.encode(text.train)
    shape = (config.batch_size, model.block_size)
    batches = [make_batch(tokens, SEED, i, *shape) for i in range(config.steps)]
    result = {"transformers": transformers.__version__, "torch": torch.__version__}
    result |= {"steps": config.steps, "layers": model.n_layer, "width": model.n_embd}
    for dtype in ("float32", "float64"):
        for name, pair in compare_pairs(config, tokenizer.vocab_size, batches, dtype).items():
            difference = float(lockstep.relative_difference(pair).max())
            losses = {"first loss": pair[1][0], "last loss": pair[1][-1]}
            result[f"{name}, {dtype}"] = {"largest relative difference": difference} | losses
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1), f"\nwrote {options.out}")


if __name__ == "__main__":
    main()
