"""The config.json of a Hugging Face GPT-2: what becomes of each of its keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from minigpt.config import DropoutConfig, ModelConfig

MAX_CONFIG_BYTES = 1 << 20
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


class OneValue(NamedTuple):
    """A key that changes the result, and the values that this GPT computes; the first is usual."""

    allowed: tuple[Any, ...]
    effect: str


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

_OUTPUT = "what a call in transformers returns"
_SUMMARY = "the second head of GPT2DoubleHeadsModel"
_LABELS = "the labels of a classifier"
_GENERATION = "how transformers generates text"
_RECORD = "a record of how the folder was made"
HARMLESS = {
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "return_dict", "use_cache"), _OUTPUT
    ),
    **dict.fromkeys(("torchscript", "output_past"), _OUTPUT),
    **dict.fromkeys(
        (
            *("summary_type", "summary_use_proj", "summary_activation"),
            *("summary_proj_to_labels", "summary_first_dropout"),
        ),
        _SUMMARY,
    ),
    **dict.fromkeys(("id2label", "label2id", "num_labels", "_num_labels", "problem_type"), _LABELS),
    **dict.fromkeys(("finetuning_task", "n_special", "predict_special_tokens"), _LABELS),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id"), _GENERATION),
    **dict.fromkeys(("decoder_start_token_id", "task_specific_params", "prefix"), _GENERATION),
    **dict.fromkeys(
        (
            *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "top_k"),
            *("num_beam_groups", "diversity_penalty", "temperature", "top_p", "typical_p"),
            *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "bad_words_ids"),
            *("encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores"),
            *("return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id"),
            *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
            *("begin_suppress_tokens", "tokenizer_class"),
        ),
        _GENERATION,
    ),
    **dict.fromkeys(("_name_or_path", "transformers_version", "_commit_hash"), _RECORD),
    "initializer_range": "the size of new random weights",
    "chunk_size_feed_forward": "not read by GPT-2",
    "is_decoder": "GPT-2 is one, whatever it says",
    "gradient_checkpointing": "memory, not the result",
    "dtype": "weights are read into float32",
    "torch_dtype": "weights are read into float32",
    "use_bfloat16": "weights are read into float32",
    "attn_implementation": "which kernel computes the attention",
    "_attn_implementation": "which kernel computes the attention",
    "_attn_implementation_autoset": "which kernel computes the attention",
}


def read_gpt2_config(path: Path) -> ModelConfig:
    """The model that a config.json describes.

    Raises:
      ValueError: the file is not the configuration of a GPT-2, or has a key that changes the
        result and that this GPT does not compute, or an unknown key.
    """
    values = _merge_aliases(path, read_json(path, MAX_CONFIG_BYTES))
    if values.get("model_type") != "gpt2":  # before the other keys: they are of another model
        _refuse(path, "model_type", values.get("model_type"), "'gpt2'", "This is another model.")
    for name, value in values.items():
        if name in ONE_VALUE:
            _require_one_value(path, name, value)
        elif name not in DEFAULTS and name not in HARMLESS:
            _refuse(
                path,
                name,
                value,
                "a key that minigpt knows, because it may change the result",
                "Remove it from the file if it does not.",
            )
    values = DEFAULTS | values
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        value = values[name]
        if type(value) is not int or not 1 <= value < 2**31:
            _refuse(path, name, value, "an integer from 1 to 2^31 - 1")
    width, heads, inner = values["n_embd"], values["n_head"], values["n_inner"]
    if width % heads:
        _refuse(path, "n_embd", width, f"a multiple of n_head={heads}")
    if inner is not None and (type(inner) is not int or inner != 4 * width):
        _refuse(path, "n_inner", inner, f"null or 4 * n_embd = {4 * width}", _OTHER_MODEL)
    activation = values["activation_function"]
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        allowed = f"one of {', '.join(ACTIVATIONS)}"
        _refuse(path, "activation_function", activation, allowed, _OTHER_MODEL)
    return ModelConfig(
        n_layer=values["n_layer"],
        n_head=heads,
        n_embd=width,
        block_size=values["n_positions"],
        bias=True,
        activation=ACTIVATIONS[activation],  # pyright: ignore[reportArgumentType]
        vocab_size=values["vocab_size"],
        dropout=_dropout(path, values),
    )


def gpt2_config(model: ModelConfig, vocab_size: int, end_of_text: int | None) -> dict[str, Any]:
    """The config.json of a model; `end_of_text` is the id of the token that ends a text.

    Raises:
      ValueError: GPT-2 has no such model.
    """
    if model.norm != "pre":
        raise ValueError(
            f"model.norm={model.norm!r} is not allowed with --format huggingface: GPT-2 has its "
            "layer norms before each branch, 'pre'. Use --format safetensors."
        )
    names = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
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


def describe_dropout(dropout: DropoutConfig) -> list[str]:
    """A line for each dropout rate of GPT-2, and the sites that have it."""
    return [
        f"{name} {getattr(dropout, sites[0])}: dropout at {' and '.join(sites)}"
        for name, sites in SITES.items()
    ]


def describe_lost_dropout(dropout: DropoutConfig) -> list[str]:
    """A line for each dropout rate that config.json has no key for."""
    named = {site for sites in SITES.values() for site in sites}
    lost = [
        f"dropout.{name}={rate} has no key in GPT-2's config.json and is left out"
        for name, rate in dropout.rates.items()
        if name not in named and rate
    ]
    if dropout.attn_out != dropout.mlp_out:
        lost.append(
            f"resid_pdrop is dropout.attn_out={dropout.attn_out}; GPT-2's config.json has no key "
            f"for dropout.mlp_out={dropout.mlp_out}"
        )
    if dropout.over_depth != "constant":
        lost.append(
            f"dropout.over_depth={dropout.over_depth!r} has no key in GPT-2's config.json; every "
            "block gets the rate of the last"
        )
    return lost


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object from a regular file of at most `max_bytes`."""
    try:
        if not path.is_file():
            raise ValueError(f"{str(path)!r} is missing, or is not a file.")
        if (size := path.stat().st_size) > max_bytes:
            raise ValueError(f"{str(path)!r} has {size:,} bytes; at most {max_bytes:,} are allowed")
        content = json.loads(path.read_bytes().decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not JSON in UTF-8: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} must be a JSON object, not {type(content).__name__}.")
    return content


_OTHER_MODEL = "minigpt has no such model."


def _refuse(path: Path, name: str, value: Any, allowed: str, remedy: str = "") -> None:
    message = f"{str(path)!r}: {name}={value!r:.200} is not allowed: it must be {allowed}."
    raise ValueError(f"{message} {remedy}".rstrip())


def _require_one_value(path: Path, name: str, value: Any) -> None:
    allowed, effect = ONE_VALUE[name]
    if any(type(value) is type(one) and value == one for one in allowed):
        return
    text = " or ".join(json.dumps(one) for one in allowed)
    remedy = _OTHER_MODEL
    if name == "reorder_and_upcast_attn":
        remedy = "In float32 it changes the rounding only: set it to false in the file."
    _refuse(path, name, value, f"{text} ({effect})", remedy)


def _merge_aliases(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values with GPT-2's own names; two names of one key must agree."""
    merged = {name: value for name, value in values.items() if name not in ALIASES}
    for alias, name in ALIASES.items():
        if alias in values and merged.setdefault(name, values[alias]) != values[alias]:
            _refuse(path, alias, values[alias], f"{name}={merged[name]!r}: they are the same")
    return merged


def _dropout(path: Path, values: dict[str, Any]) -> DropoutConfig:
    rates = {}
    for name, sites in SITES.items():
        rate = values[name]
        if type(rate) not in (int, float) or not 0 <= rate < 1:
            _refuse(path, name, rate, "a probability of dropping in [0, 1)")
        rates |= dict.fromkeys(sites, float(rate))
    return DropoutConfig(**rates)
