"""The tokenizer of a Hugging Face folder: read it, and write that of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minigpt.data import AnyTokenizer, ChatTemplate, SubwordTokenizer, Tokenizer
from minigpt.interop.config_json import read_json
from minigpt.interop.model_chat_template import TEMPLATE
from minigpt.interop.plain_tokenizers import parse_tokenizer_json, tokenizer_json

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
MAX_TOKENIZER_BYTES = 1 << 28
END_OF_TEXT = "<|endoftext|>"


def read_model_tokenizer(folder: Path) -> AnyTokenizer:
    """The tokenizer of tokenizer.json, or of vocab.json and merges.txt."""
    path = folder / "tokenizer.json"
    if path.is_file():
        if tokenizer := parse_tokenizer_json(read_json(path, MAX_TOKENIZER_BYTES)):
            return tokenizer
    elif not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise ValueError(
            f"{str(folder)!r} has neither tokenizer.json nor vocab.json and merges.txt: copy those "
            "of the model's tokenizer there."
        )
    return SubwordTokenizer.from_file(folder)


def tokenizer_setting(tokenizer: AnyTokenizer, folder: Path) -> str:
    """The value of the setting `tokenizer` for the tokenizer of a folder."""
    if isinstance(tokenizer, Tokenizer):
        return "byte" if tokenizer.alphabet is None else "char"
    return str(folder.resolve())


def special_token_id(tokenizer: AnyTokenizer, name: str = END_OF_TEXT) -> int | None:
    """The id of a special token, by default GPT-2's between texts; None if there is none."""
    if isinstance(tokenizer, Tokenizer):
        return None
    content = json.loads(tokenizer.tokenizer_json)
    for token in content.get("added_tokens") or []:
        if token["content"] == name:
            return token["id"]
    vocabulary = content["model"].get("vocab")
    return vocabulary.get(name) if isinstance(vocabulary, dict) else None


def tokenizer_files(
    tokenizer: AnyTokenizer, block_size: int, template: ChatTemplate | None = None
) -> dict[str, bytes]:
    """The files that AutoTokenizer reads, by name."""
    if isinstance(tokenizer, Tokenizer):
        text = json.dumps(tokenizer_json(tokenizer), ensure_ascii=False)
    else:
        text = tokenizer.tokenizer_json
    settings: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if special_token_id(tokenizer) is not None:
        settings |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    settings |= {} if template is None else template.tokens
    files = {
        "tokenizer.json": text.encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode() + b"\n",
    }
    return files if template is None else files | {TEMPLATE: template.source.encode()}
