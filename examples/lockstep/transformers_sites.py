"""What the models of transformers drop, and where: a table from models built from their configs.

    python examples/lockstep/transformers_sites.py

Each rate of a config is set by itself; the sites that then drop in a forward pass are its sites.
The weights are random and the sizes small, the default rates are the config's own.
"""

from typing import Any, NamedTuple

import torch
import transformers

from dropout_jax.parity import hooks

BATCH, TIME, WIDTH, HEADS, INNER, VOCABULARY = 3, 6, 8, 2, 20, 11
LETTERS = {BATCH: "batch", TIME: "time", WIDTH: "width", HEADS: "heads", INNER: "inner"}
COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "attn_implementation": "eager"}
USUAL: dict[str, Any] = COMMON | {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
}
TOKENS = {"input_ids": torch.ones(BATCH, TIME, dtype=torch.long)}
PATCHES = {"pixel_values": torch.ones(BATCH, 3, 10, 2)}  # 5 patches and the class token


class Architecture(NamedTuple):
    """A model, its config with small sizes, the names of its rates, and an input."""

    name: str
    model: type
    config: transformers.PretrainedConfig
    rates: tuple[str, ...]
    inputs: dict[str, torch.Tensor]


def list_architectures():
    gpt2: dict[str, Any] = {"n_embd": WIDTH, "n_layer": 1, "n_head": HEADS, "n_inner": INNER}
    t5: dict[str, Any] = {
        "d_model": WIDTH,
        "d_kv": 4,
        "num_layers": 1,
        "num_heads": HEADS,
        "d_ff": INNER,
    }
    vit: dict[str, Any] = USUAL | {"image_size": (10, 2), "patch_size": 2}
    hidden = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return (
        Architecture(
            "GPT-2",
            transformers.GPT2LMHeadModel,
            transformers.GPT2Config(**COMMON, **gpt2, bos_token_id=0, eos_token_id=0),
            ("embd_pdrop", "attn_pdrop", "resid_pdrop"),
            TOKENS,
        ),
        Architecture(
            "BERT", transformers.BertModel, transformers.BertConfig(**USUAL), hidden, TOKENS
        ),
        Architecture(
            "T5",
            transformers.T5Model,
            transformers.T5Config(**COMMON, **t5),
            ("dropout_rate",),
            TOKENS | {"decoder_input_ids": TOKENS["input_ids"]},
        ),
        Architecture(
            "Llama",
            transformers.LlamaForCausalLM,
            transformers.LlamaConfig(**USUAL),
            ("attention_dropout",),
            TOKENS,
        ),
        Architecture("ViT", transformers.ViTModel, transformers.ViTConfig(**vit), hidden, PATCHES),
    )


def list_sites(architecture, rate):
    """The sites of one rate, set to 0.5 where all others are 0: {name: shape of the mask}."""
    config = type(architecture.config).from_dict(architecture.config.to_dict())
    config._attn_implementation = "eager"
    for name in architecture.rates:
        setattr(config, name, 0.5 if name == rate else 0.0)
    model, tape = architecture.model(config).train(), {}
    hooks.record(model, tape)
    model(**architecture.inputs)
    return {name: record["mask"].shape for name, record in tape.items()}


def name_axes(shape):
    return "(" + ", ".join(LETTERS[size] for size in shape) + ")"


def make_rows():
    """(model, field of its config, its default, site, shape) for every site."""
    return [
        (each.name, rate, f"{type(each.config)().to_dict()[rate]:g}", site, name_axes(shape))
        for each in list_architectures()
        for rate in each.rates
        for site, shape in list_sites(each, rate).items()
    ]


def main():
    header = ("Model", "Field", "Default", "Site", "Shape of the mask")
    for row in (header, ("---",) * 5, *make_rows()):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
