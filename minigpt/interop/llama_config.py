"""The config.json of a Hugging Face Llama: what becomes of each of its keys."""

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
    require_positive,
)

DEFAULTS: dict[str, Any] = {
    **{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008},
    **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None},
    **{"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    **{"head_dim": None, "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0},
    **{"rope_theta": None, "rope_scaling": None, "rope_parameters": None},
}
SITES = {"attention_dropout": ("attn_weights",)}
ONE_VALUE = {
    "model_type": OneValue(("llama",), "the architecture"),
    "architectures": OneValue(
        (None, ["LlamaForCausalLM"], ["LlamaModel"]), "the head: only that of a language model"
    ),
    "hidden_act": OneValue(("silu", "swish"), "the activation of the MLP's gate"),
    "pretraining_tp": OneValue((1,), "the order of sums in the dense layers"),
    "rope_interleaved": OneValue((False,), "which elements of a head are rotated together"),
    "is_llama_config": OneValue((True,), "the architecture"),
    "sliding_window": OneValue((None,), "the positions that the attention sees"),
    "add_cross_attention": OneValue((False,), "attention to an encoder"),
    "cross_attention_hidden_size": OneValue((None,), "attention to an encoder"),
    "is_encoder_decoder": OneValue((False,), "attention to an encoder"),
    "tie_encoder_decoder": OneValue((False,), "attention to an encoder"),
    "pruned_heads": OneValue(({}, None), "heads that are left out"),
    "quantization_config": OneValue((None,), "weights of a few bits"),
}
HARMLESS = config_json.HARMLESS | {
    "chunk_size_feed_forward": "not read by Llama",
    **dict.fromkeys(
        ("transformers.js_config", "unsloth_fixed", "unsloth_version"),
        "a record of how the folder was made",
    ),
}


def read_llama_config(path: Path) -> ModelConfig:
    """The model that a config.json describes.

    Raises:
      ValueError: the file is not the configuration of a Llama, or has a key that changes the
        result and that this GPT does not compute, or an unknown key.
    """
    values = read_json(path, MAX_CONFIG_BYTES)
    for name, value in values.items():
        if name in ONE_VALUE:
            require_one_value(path, name, value, ONE_VALUE[name])
        elif name not in DEFAULTS and name not in HARMLESS:
            refuse_unknown_key(path, name, value, "model_type='llama'")
    values = DEFAULTS | values
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    sizes = {
        **{"vocab_size": "vocab_size", "n_embd": "hidden_size", "n_inner": "intermediate_size"},
        **{"n_layer": "num_hidden_layers", "n_head": "num_attention_heads"},
        **{"n_kv_head": "num_key_value_heads", "block_size": "max_position_embeddings"},
    }
    require_counts(path, values, *sizes.values())
    _require_heads(path, values)
    for name in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        if type(values[name]) is not bool:
            refuse(path, name, values[name], "true or false")
    if values["mlp_bias"] != values["attention_bias"]:
        allowed = f"attention_bias={values['attention_bias']!r}"
        refuse(path, "mlp_bias", values["mlp_bias"], allowed, OTHER_MODEL)
    return llama_model(
        **{ours: values[name] for ours, name in sizes.items()},
        norm_epsilon=require_positive(path, "rms_norm_eps", values["rms_norm_eps"]),
        rope_theta=_read_rope_theta(path, values),
        bias=values["attention_bias"],
        tied_head=values["tie_word_embeddings"],
        dropout=read_dropout(path, values, SITES),
    )


def llama_model(**settings: Any) -> ModelConfig:
    """The settings of a GPT that is a Llama."""
    return ModelConfig(activation="swiglu", norm_type="rmsnorm", positions="rotary", **settings)


def llama_config(model: ModelConfig, vocab_size: int, end_of_text: int | None) -> dict[str, Any]:
    """The config.json of a model; `end_of_text` is the id of the token that ends a text.

    Raises:
      ValueError: Llama has no such model.
    """
    require_exportable(
        model,
        "Llama",
        {
            **{"norm": ("pre",), "norm_type": ("rmsnorm",), "positions": ("rotary",)},
            "activation": ("swiglu",),
        },
    )
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": model.bias,
        "attention_dropout": model.dropout.attn_weights,
        "bos_token_id": end_of_text,
        "dtype": "float32",
        "eos_token_id": end_of_text,
        "head_dim": model.n_embd // model.n_head,
        "hidden_act": "silu",
        "hidden_size": model.n_embd,
        "intermediate_size": model.mlp_width,
        "max_position_embeddings": model.block_size,
        "mlp_bias": model.bias,
        "model_type": "llama",
        "num_attention_heads": model.n_head,
        "num_hidden_layers": model.n_layer,
        "num_key_value_heads": model.kv_heads,
        "rms_norm_eps": model.norm_epsilon,
        # Both spellings: transformers 5 reads the first, earlier versions the second.
        "rope_parameters": {"rope_theta": model.rope_theta, "rope_type": "default"},
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied_head,
        "vocab_size": vocab_size,
    }


def _require_heads(path: Path, values: dict[str, Any]) -> None:
    width, heads = values["hidden_size"], values["num_attention_heads"]
    groups, head_width = values["num_key_value_heads"], values["head_dim"]
    if width % (2 * heads):
        refuse(path, "hidden_size", width, f"an even multiple of num_attention_heads={heads}")
    if heads % groups:
        refuse(path, "num_key_value_heads", groups, f"a divisor of num_attention_heads={heads}")
    if head_width is not None and (type(head_width), head_width) != (int, width // heads):
        allowed = f"null or hidden_size / num_attention_heads = {width // heads}"
        refuse(path, "head_dim", head_width, allowed, OTHER_MODEL)


def _read_rope_theta(path: Path, values: dict[str, Any]) -> float:
    """The base of the rotary positions, in one of two places; scaled positions are refused."""
    theta = values["rope_theta"]
    for name in ("rope_scaling", "rope_parameters"):
        given = values[name]
        if given is None:
            continue
        if not isinstance(given, dict):
            refuse(path, name, given, "null or an object")
        for key, value in given.items():
            if key in ("rope_type", "type"):
                one_value = OneValue(("default",), "positions that are scaled")
                require_one_value(path, f"{name}.{key}", value, one_value)
            elif key != "rope_theta":
                refuse_unknown_key(path, f"{name}.{key}", value, "model_type='llama'")
        theta = given.get("rope_theta", theta) if theta is None else theta
        if given.get("rope_theta", theta) != theta:
            allowed = f"rope_theta={theta!r}: they are the same"
            refuse(path, f"{name}.rope_theta", given["rope_theta"], allowed)
    return require_positive(path, "rope_theta", 10_000.0 if theta is None else theta)
