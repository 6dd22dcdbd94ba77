"""The chat template of a Hugging Face folder: read it, and write that of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt.data import AnyTokenizer, ChatTemplate, require_valid_template, special_tokens
from minigpt.interop.config_json import read_json

TEMPLATE, CONFIG, TOKENS = "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"
MAX_TEMPLATE_BYTES = 1 << 22
TOKEN_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# Their keys in a GGUF file; one is misspelled there.
GGUF_NAMES = {
    f"{name}_token": key
    for name, key in (("bos",) * 2, ("eos",) * 2, ("unk", "unknown"), ("sep", "seperator"))
} | {"pad_token": "padding"}
# Those that GPT-2's tokenizer in transformers has where the folder names none.
GPT2_TOKENS = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")


def read_chat_template(folder: Path, tokenizer: AnyTokenizer) -> ChatTemplate | None:
    """The template of chat_template.jinja, or of tokenizer_config.json; None if there is none.

    Raises:
      ValueError: it is not a template of Jinja, or a file is damaged.
    """
    config = _read_object(folder / CONFIG)
    path, source = folder / CONFIG, config.get("chat_template")
    if (folder / TEMPLATE).is_file():
        path, source = folder / TEMPLATE, _read_text(folder / TEMPLATE)
    if isinstance(source, list):
        entries = [entry for entry in source if isinstance(entry, dict)]
        source = {entry.get("name"): entry.get("template") for entry in entries}.get("default")
    if source is None:
        return None
    return ChatTemplate(_require_template(path, source), _read_tokens(folder, config, tokenizer))


def gguf_chat_template(path: Path, metadata: Mapping[str, Any]) -> ChatTemplate | None:
    """The template in the metadata of a GGUF file; None if there is none.

    Raises:
      ValueError: it is not a template of Jinja.
    """
    source, tokens = metadata.get("tokenizer.chat_template"), metadata["tokenizer.ggml.tokens"]
    if source is None:
        return None
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in GGUF_NAMES.items()}
    named = {name: tokens[i] for name, i in ids.items() if i is not None and 0 <= i < len(tokens)}
    return ChatTemplate(_require_template(path, source), named)


def chat_template_files(folder: Path) -> list[str]:
    """The names of the files that a template comes from; none if there is no template."""
    config = _read_object(folder / CONFIG)
    if not (folder / TEMPLATE).is_file() and config.get("chat_template") is None:
        return []
    return [name for name in (TEMPLATE, CONFIG, TOKENS) if (folder / name).is_file()]


def _require_template(path: Path, source: Any) -> str:
    if not isinstance(source, str):
        raise ValueError(
            f"{str(path)!r}: chat_template={source!r:.80} is not allowed: it must be text, or a "
            "list with one named default."
        )
    try:
        require_valid_template(source)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None
    return source


def _read_tokens(folder: Path, config: dict[str, Any], tokenizer: AnyTokenizer) -> dict[str, str]:
    """The text of each special token that has a name."""
    values = _read_object(folder / TOKENS) | config
    if str(config.get("tokenizer_class", "")).startswith("GPT2"):
        has_end = GPT2_TOKENS["eos_token"] in special_tokens(tokenizer)
        values = (GPT2_TOKENS if has_end else {}) | values
    tokens = {}
    for name in TOKEN_NAMES:
        value = values.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _read_object(path: Path) -> dict[str, Any]:
    return read_json(path, MAX_TEMPLATE_BYTES) if path.is_file() else {}


def _read_text(path: Path) -> str:
    if (size := path.stat().st_size) > MAX_TEMPLATE_BYTES:
        raise ValueError(
            f"{str(path)!r} has {size:,} bytes; at most {MAX_TEMPLATE_BYTES:,} are allowed"
        )
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8: {error}.") from None
