"""The tokenizer of a Hugging Face folder: read it, and write that of a run."""

from __future__ import annotations

import json
from pathlib import Path

from minigpt.data import Tokenizer
from minigpt.interop.gpt2_config import read_json
from minigpt.interop.plain_tokenizers import parse_tokenizer_json, tokenizer_json

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
MAX_TOKENIZER_BYTES = 1 << 28
END_OF_TEXT = "<|endoftext|>"


def read_model_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of tokenizer.json, or of vocab.json and merges.txt."""
    path = folder / "tokenizer.json"
    if path.is_file():
        if tokenizer := parse_tokenizer_json(read_json(path, MAX_TOKENIZER_BYTES)):
            return tokenizer
        raise NotImplementedError
    raise ValueError(
        f"{str(folder)!r} has neither tokenizer.json nor vocab.json and merges.txt: copy those of "
        "the model's tokenizer there."
    )


def end_of_text_id(tokenizer: Tokenizer) -> int | None:
    """The id of GPT-2's token between texts; None if the tokenizer has none."""
    return None


def tokenizer_files(tokenizer: Tokenizer, block_size: int) -> dict[str, bytes]:
    """The files that AutoTokenizer reads, by name."""
    settings = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "tokenizer.json": json.dumps(tokenizer_json(tokenizer), ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode() + b"\n",
    }
