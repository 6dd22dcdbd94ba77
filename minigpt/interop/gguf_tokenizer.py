"""The tokenizer in the metadata of a GGUF file, as a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt.data import AnyTokenizer, SubwordTokenizer, make_byte_level_json
from minigpt.interop.config_json import refuse

_GPT2_PATTERN = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
# The first step of each tokenizer of bytes; the names and patterns are llama.cpp's.
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {
    "gpt-2": _GPT2_PATTERN | {"use_regex": True},
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            _GPT2_PATTERN | {"use_regex": True},
        ],
    },
    "llama-bpe": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": _LLAMA3_PATTERN}}
            | {"behavior": "Isolated", "invert": False},
            _GPT2_PATTERN | {"use_regex": False},
        ],
    },
}
_CONTROL = 3  # the type of special tokens


def read_gguf_tokenizer(path: Path, metadata: Mapping[str, Any]) -> AnyTokenizer:
    """The tokenizer of a file's metadata: subwords of bytes, with their merges.

    Raises:
      ValueError: the metadata are of another kind of tokenizer, or damaged.
    """
    prefix = "tokenizer.ggml."
    kind, pattern = metadata.get(f"{prefix}model"), metadata.get(f"{prefix}pre", "gpt-2")
    remedy = "Convert the model's folder of Hugging Face instead, which has a tokenizer.json."
    if kind != "gpt2":
        refuse(path, f"{prefix}model", kind, "'gpt2', subwords of bytes", remedy)
    if pattern not in _PATTERNS:
        refuse(path, f"{prefix}pre", pattern, f"one of {', '.join(_PATTERNS)}", remedy)
    tokens, merges = (_texts(path, metadata, f"{prefix}{name}") for name in ("tokens", "merges"))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        refuse(path, f"{prefix}tokens", tokens, "different tokens", "The file is damaged.")
    types = metadata.get(f"{prefix}token_type") or [1] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        refuse(path, f"{prefix}token_type", types, f"{len(tokens)} numbers", "It is damaged.")
    special = {token: i for i, token in enumerate(tokens) if types[i] == _CONTROL}
    pairs = [_pair(merge) for merge in merges]
    if not all(part in vocabulary for pair in pairs for part in pair):
        refuse(path, f"{prefix}merges", merges, "pairs of tokens", "The file is damaged.")
    content = json.loads(make_byte_level_json(vocabulary, pairs, special))
    content["pre_tokenizer"] = _PATTERNS[pattern]
    content["model"]["ignore_merges"] = pattern == "llama-bpe"
    tokenizer = SubwordTokenizer(json.dumps(content))
    try:
        _ = tokenizer.encode("")
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None
    return tokenizer


def _pair(merge: str) -> list[str]:
    """The two tokens of a merge; the first may begin with a space."""
    end = merge.find(" ", 1)
    return [merge[:end], merge[end + 1 :]]


def _texts(path: Path, metadata: Mapping[str, Any], name: str) -> list[str]:
    values = metadata.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        refuse(path, name, values, "a list of texts", "The file is damaged.")
    return values
