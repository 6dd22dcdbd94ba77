"""Read a config.json of Hugging Face: refuse by name what would change the result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from minigpt.config import DropoutConfig, ModelConfig

MAX_CONFIG_BYTES = 1 << 20
OTHER_MODEL = "minigpt has no such model."


class OneValue(NamedTuple):
    """A key that changes the result, and the values that this GPT computes; the first is usual."""

    allowed: tuple[Any, ...]
    effect: str


_OUTPUT = "what a call in transformers returns"
_LABELS = "the labels of a classifier"
_GENERATION = "how transformers generates text"
_RECORD = "a record of how the folder was made"
HARMLESS = {
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "return_dict", "use_cache"), _OUTPUT
    ),
    "torchscript": _OUTPUT,
    **dict.fromkeys(("id2label", "label2id", "num_labels", "_num_labels", "problem_type"), _LABELS),
    "finetuning_task": _LABELS,
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
    "is_decoder": "it is one, whatever it says",
    "gradient_checkpointing": "memory, not the result",
    "dtype": "weights are read into float32",
    "torch_dtype": "weights are read into float32",
    "use_bfloat16": "weights are read into float32",
    "attn_implementation": "which kernel computes the attention",
    "_attn_implementation": "which kernel computes the attention",
    "_attn_implementation_autoset": "which kernel computes the attention",
}


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


def refuse(path: Path, name: str, value: Any, allowed: str, remedy: str = "") -> NoReturn:
    """Raise the ValueError of a value that is not allowed in a file."""
    message = f"{str(path)!r}: {name}={value!r:.200} is not allowed: it must be {allowed}."
    raise ValueError(f"{message} {remedy}".rstrip())


def refuse_unknown_key(path: Path, name: str, value: Any, kind: str) -> NoReturn:
    """Refuse a key that may change the result."""
    allowed = f"a key that minigpt knows of {kind}, because it may change the result"
    refuse(path, name, value, allowed, "Remove it from the file if it does not.")


def require_one_value(path: Path, name: str, value: Any, one_value: OneValue) -> None:
    """Refuse a value that this GPT does not compute."""
    allowed, effect = one_value
    if any(type(value) is type(one) and value == one for one in allowed):
        return
    text = " or ".join(json.dumps(one) for one in allowed)
    remedy = OTHER_MODEL
    if name == "reorder_and_upcast_attn":
        remedy = "In float32 it changes the rounding only: set it to false in the file."
    refuse(path, name, value, f"{text} ({effect})", remedy)


def require_counts(path: Path, values: Mapping[str, Any], *names: str) -> None:
    """Refuse what is not an integer from 1 to 2^31 - 1."""
    for name in names:
        if type(values[name]) is not int or not 1 <= values[name] < 2**31:
            refuse(path, name, values[name], "an integer from 1 to 2^31 - 1")


def require_positive(path: Path, name: str, value: Any) -> float:
    """A positive, finite number."""
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        refuse(path, name, value, "a positive, finite number")
    return float(value)


def read_dropout(
    path: Path, values: Mapping[str, Any], sites: Mapping[str, tuple[str, ...]]
) -> DropoutConfig:
    """The rates of dropout sites from the keys that name them."""
    rates = {}
    for name, ours in sites.items():
        rate = values[name]
        if type(rate) not in (int, float) or not 0 <= rate < 1:
            refuse(path, name, rate, "a probability of dropping in [0, 1)")
        rates |= dict.fromkeys(ours, float(rate))
    return DropoutConfig(**rates)


def require_exportable(
    model: ModelConfig, kind: str, values: Mapping[str, tuple[Any, ...]]
) -> None:
    """Raise ValueError if a model setting has none of the values that models of this kind have."""
    for name, allowed in values.items():
        if (value := getattr(model, name)) not in allowed:
            raise ValueError(
                f"model.{name}={value!r} is not allowed with --format huggingface: {kind} has "
                f"{' or '.join(map(repr, allowed))}. Use --format safetensors."
            )


def describe_dropout(dropout: DropoutConfig, sites: Mapping[str, tuple[str, ...]]) -> list[str]:
    """A line for each dropout rate of config.json, and the sites that have it."""
    return [
        f"{name} {getattr(dropout, ours[0])}: dropout at {' and '.join(ours)}"
        for name, ours in sites.items()
    ]


def describe_lost_dropout(
    dropout: DropoutConfig, sites: Mapping[str, tuple[str, ...]], kind: str
) -> list[str]:
    """A line for each dropout rate that config.json has no key for."""
    named = {site for ours in sites.values() for site in ours}
    lost = [
        f"dropout.{name}={rate} has no key in {kind}'s config.json and is left out"
        for name, rate in dropout.rates.items()
        if name not in named and rate
    ]
    for name, (first, *others) in sites.items():
        rate = getattr(dropout, first)
        lost += [
            f"{name} is dropout.{first}={rate}; {kind}'s config.json has no key for "
            f"dropout.{other}={getattr(dropout, other)}"
            for other in others
            if getattr(dropout, other) != rate
        ]
    if dropout.over_depth != "constant":
        lost.append(
            f"dropout.over_depth={dropout.over_depth!r} has no key in {kind}'s config.json; every "
            "block gets the rate of the last"
        )
    return lost
