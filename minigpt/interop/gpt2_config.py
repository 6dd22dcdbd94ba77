"""The config.json of a Hugging Face GPT-2: what becomes of each of its keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minigpt.config import ModelConfig
from minigpt.interop import config_json
from minigpt.interop.config_json import (
    MAX_CONFIG_BYTES,
    OTHER_MODEL,
    OneValue,
    read_dropout,
    read_json,
    refuse,
    refuse_unknown_key,
    require_counts,
    require_exportable,
    require_one_value,
)

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
# Other names of the same key: those of other architectures, and GPT-2's own earlier one.
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "n_ctx": "n_positions",
}
DEFAULTS: dict[str, Any] = {
    **{"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12},
    **{"n_inner": None, "activation_function": "gelu_new"},
    **{"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
}
SITES = {
    "attn_pdrop": ("attn_weights",),
    "embd_pdrop": ("embed",),
    "resid_pdrop": ("attn_out", "mlp_out"),
}
ONE_VALUE = {
    "model_type": OneValue(("gpt2",), "the architecture"),
    "architectures": OneValue(
        (None, ["GPT2LMHeadModel"], ["GPT2Model"]), "the head: only that of a language model"
    ),
    "layer_norm_epsilon": OneValue((1e-5,), "added to the variance in layer norms"),
    "scale_attn_weights": OneValue((True,), "divides scores by sqrt(head width)"),
    "scale_attn_by_inverse_layer_idx": OneValue((False,), "divides scores by the block's number"),
    "reorder_and_upcast_attn": OneValue((False,), "the order of rounding in the attention"),
    "add_cross_attention": OneValue((False,), "attention to an encoder"),
    "cross_attention_hidden_size": OneValue((None,), "attention to an encoder"),
    "is_encoder_decoder": OneValue((False,), "attention to an encoder"),
    "tie_encoder_decoder": OneValue((False,), "attention to an encoder"),
    "tie_word_embeddings": OneValue((True,), "the output layer shares the token table"),
    "pruned_heads": OneValue(({}, None), "heads that are left out"),
    "quantization_config": OneValue((None,), "weights of a few bits"),
}

_SUMMARY = "the second head of GPT2DoubleHeadsModel"
HARMLESS = config_json.HARMLESS | {
    "output_past": "what a call in transformers returns",
    **dict.fromkeys(
        (
            *("summary_type", "summary_use_proj", "summary_activation"),
            *("summary_proj_to_labels", "summary_first_dropout"),
        ),
        _SUMMARY,
    ),
    **dict.fromkeys(("n_special", "predict_special_tokens"), "the labels of a classifier"),
    "chunk_size_feed_forward": "not read by GPT-2",
}


def read_gpt2_config(path: Path) -> ModelConfig:
    """The model that a config.json describes.

    Raises:
      ValueError: the file is not the configuration of a GPT-2, or has a key that changes the
        result and that this GPT does not compute, or an unknown key.
    """
    values = _merge_aliases(path, read_json(path, MAX_CONFIG_BYTES))
    for name, value in values.items():
        if name in ONE_VALUE:
            require_one_value(path, name, value, ONE_VALUE[name])
        elif name not in DEFAULTS and name not in HARMLESS:
            refuse_unknown_key(path, name, value, "model_type='gpt2'")
    values = DEFAULTS | values
    require_counts(path, values, "vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    width, heads, inner = values["n_embd"], values["n_head"], values["n_inner"]
    if width % heads:
        refuse(path, "n_embd", width, f"a multiple of n_head={heads}")
    if inner is not None and (type(inner) is not int or inner != 4 * width):
        refuse(path, "n_inner", inner, f"null or 4 * n_embd = {4 * width}", OTHER_MODEL)
    activation = values["activation_function"]
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        allowed = f"one of {', '.join(ACTIVATIONS)}"
        refuse(path, "activation_function", activation, allowed, OTHER_MODEL)
    return ModelConfig(
        n_layer=values["n_layer"],
        n_head=heads,
        n_embd=width,
        block_size=values["n_positions"],
        bias=True,
        activation=ACTIVATIONS[activation],  # pyright: ignore[reportArgumentType]
        vocab_size=values["vocab_size"],
        dropout=read_dropout(path, values, SITES),
    )


def gpt2_config(model: ModelConfig, vocab_size: int, end_of_text: int | None) -> dict[str, Any]:
    """The config.json of a model; `end_of_text` is the id of the token that ends a text.

    Raises:
      ValueError: GPT-2 has no such model.
    """
    names = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
    require_exportable(
        model,
        "GPT-2",
        {
            **{"norm": ("pre",), "norm_type": ("layernorm",), "norm_epsilon": (1e-5,)},
            **{"positions": ("learned",), "n_kv_head": (None, model.n_head)},
            **{"activation": tuple(names), "n_inner": (None, 4 * model.n_embd)},
            "tied_head": (True,),
        },
    )
    rates = {name: getattr(model.dropout, sites[0]) for name, sites in SITES.items()}
    return {
        "activation_function": names[model.activation],
        "add_cross_attention": False,
        "architectures": ["GPT2LMHeadModel"],
        **rates,
        "bos_token_id": end_of_text,
        "dtype": "float32",
        "eos_token_id": end_of_text,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_embd": model.n_embd,
        "n_head": model.n_head,
        "n_inner": None,
        "n_layer": model.n_layer,
        "n_positions": model.block_size,
        "reorder_and_upcast_attn": False,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "vocab_size": vocab_size,
    }


def _merge_aliases(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values with GPT-2's own names; two names of one key must agree."""
    merged = {name: value for name, value in values.items() if name not in ALIASES}
    for alias, name in ALIASES.items():
        if alias in values and merged.setdefault(name, values[alias]) != values[alias]:
            refuse(path, alias, values[alias], f"{name}={merged[name]!r}: they are the same")
    return merged
