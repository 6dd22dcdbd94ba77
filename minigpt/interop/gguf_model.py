"""A Llama in a GGUF file: its settings and its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigpt.config import ModelConfig
from minigpt.data import AnyTokenizer, ChatTemplate
from minigpt.interop.config_json import OneValue, refuse, require_counts, require_positive
from minigpt.interop.gguf_file import GgufArray, read_gguf
from minigpt.interop.gguf_tokenizer import read_gguf_tokenizer
from minigpt.interop.llama_config import llama_model
from minigpt.interop.llama_weights import HEAD, TABLE, convert_llama_arrays
from minigpt.interop.model_chat_template import gguf_chat_template

_WIDTH, _HEADS = "llama.embedding_length", "llama.attention.head_count"
_KV_HEADS = "llama.attention.head_count_kv"
_SIZES = {
    "llama.block_count": "n_layer",
    "llama.context_length": "block_size",
    _WIDTH: "n_embd",
    "llama.feed_forward_length": "n_inner",
    _HEADS: "n_head",
    _KV_HEADS: "n_kv_head",
}
_EPSILON = "llama.attention.layer_norm_rms_epsilon"
_THETA = "llama.rope.freq_base"
_HEAD_WIDTHS = (
    *("llama.rope.dimension_count", "llama.attention.key_length"),
    "llama.attention.value_length",
)
# Keys that change the result, and the values that this GPT computes.
_ONE_VALUE = {
    "general.architecture": OneValue(("llama",), "the architecture"),
    "general.type": OneValue(("model",), "what the file is"),
    "split.count": OneValue((0, 1), "parts of the model in other files"),
    "llama.expert_count": OneValue((0,), "experts"),
    "llama.expert_used_count": OneValue((0,), "experts"),
    "llama.rope.scaling.type": OneValue(("none",), "positions that are scaled"),
    "llama.attention.causal": OneValue((True,), "the positions that the attention sees"),
}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OTHERS = {TABLE: "token_embd.weight", HEAD: "output.weight", "norm.weight": "output_norm.weight"}


class GgufModel(NamedTuple):
    """What a file has; `arrays` are the parameters by their plain names."""

    model: ModelConfig
    tokenizer: AnyTokenizer
    chat_template: ChatTemplate | None
    arrays: dict[str, np.ndarray]


def read_gguf_model(path: Path) -> GgufModel:
    """The settings, the tokenizer, the chat template and the parameters.

    Raises:
      ValueError: the file is damaged, not of a Llama that this GPT computes, or has a tokenizer
        that is not known.
    """
    metadata, arrays = read_gguf(path)
    rows = arrays["token_embd.weight"].shape[0] if "token_embd.weight" in arrays else 0
    model = _read_settings(path, metadata, rows, is_tied="output.weight" not in arrays)
    tokenizer = read_gguf_tokenizer(path, metadata)
    if tokenizer.vocab_size > rows:
        raise ValueError(
            f"{str(path)!r}: the tokenizer has {tokenizer.vocab_size} tokens, and the token table "
            f"has {rows} rows. Is it another model's?"
        )
    stored = {_llama_name(name): _unpermute(name, array, model) for name, array in arrays.items()}
    plain = convert_llama_arrays(path, model, stored, _gguf_name, "the metadata")
    return GgufModel(model, tokenizer, gguf_chat_template(path, metadata), plain)


def _read_settings(
    path: Path, metadata: Mapping[str, Any], rows: int, *, is_tied: bool
) -> ModelConfig:
    """The model of the metadata; what changes the result is read, or refused by name."""
    for name, one_value in _ONE_VALUE.items():
        given = metadata.get(name, one_value.allowed[0])
        if name == "general.architecture":
            given = metadata.get(name)
        if given not in one_value.allowed:
            refuse(path, name, given, f"{one_value.allowed[-1]!r} ({one_value.effect})")
    known = {*_SIZES, _EPSILON, _THETA, *_HEAD_WIDTHS, *_ONE_VALUE, "llama.vocab_size"}
    for name, value in metadata.items():
        if name.startswith("llama.") and name not in known:
            allowed = "a key that minigpt knows, because it may change the result"
            refuse(path, name, value, allowed)
    values: dict[str, Any] = dict.fromkeys((*_SIZES, _EPSILON)) | {"llama.vocab_size": rows}
    values |= {_KV_HEADS: metadata.get(_HEADS), _THETA: 10_000.0} | dict(metadata)
    require_counts(path, values, *_SIZES)
    width, heads, kv_heads = values[_WIDTH], values[_HEADS], values[_KV_HEADS]
    for name, is_valid, allowed in (
        ("llama.vocab_size", values["llama.vocab_size"] == rows, f"{rows}, the rows of the table"),
        (_WIDTH, width % (2 * heads) == 0, f"an even multiple of {heads} heads"),
        (_KV_HEADS, heads % kv_heads == 0, f"a divisor of {heads} heads"),
        *(
            (name, values.get(name, width // heads) == width // heads, f"{width} / {heads} heads")
            for name in _HEAD_WIDTHS
        ),
    ):
        if not is_valid:
            refuse(path, name, values[name], allowed)
    return llama_model(
        **{ours: values[name] for name, ours in _SIZES.items()},
        vocab_size=rows,
        norm_epsilon=_shortest(require_positive(path, _EPSILON, values[_EPSILON])),
        rope_theta=_shortest(require_positive(path, _THETA, values[_THETA])),
        tied_head=is_tied,
    )


def _shortest(number: float) -> float:
    """The shortest decimal of the same float32, which the file has: 1e-5, not 9.9999997e-06."""
    return float(str(np.float32(number)))


def _llama_name(name: str) -> str:
    """Hugging Face's name of an array, without `model.`; that of an unknown array stays."""
    for theirs, ours in _OTHERS.items():
        if name == ours:
            return theirs
    for theirs, ours in _BLOCK.items():
        if match := re.fullmatch(rf"blk\.(\d+)\.{ours}\.(weight|bias)", name):
            return f"layers.{match[1]}.{theirs}.{match[2]}"
    return name


def _gguf_name(name: str) -> str:
    """The name in the file, from that of Hugging Face."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match and match[2] in _BLOCK:
        return f"blk.{match[1]}.{_BLOCK[match[2]]}.{match[3]}"
    return _OTHERS.get(name, name)


class _PermutedArray(NamedTuple):
    """Rows of queries or keys: llama.cpp rotates elements 2i and 2i + 1 of a head together.

    Its converter has reordered the rows so; this is the order of Hugging Face, which rotates
    element i of the first half with element i of the second.
    """

    array: GgufArray
    heads: int

    @property
    def path(self) -> Path:
        return self.array.path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read_float32(self) -> np.ndarray:
        rows = self.array.read_float32()
        pairs = rows.reshape(self.heads, -1, 2, *rows.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _unpermute(name: str, array: GgufArray, model: ModelConfig) -> GgufArray | _PermutedArray:
    match = re.fullmatch(r"blk\.\d+\.attn_(q|k)\.(weight|bias)", name)
    if match is None:
        return array
    return _PermutedArray(array, model.n_head if match[1] == "q" else model.kv_heads)
