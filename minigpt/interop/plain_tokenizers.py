"""Tokenizers of characters and of bytes as a tokenizer.json of the `tokenizers` library."""

from __future__ import annotations

from typing import Any

from minigpt.data import Tokenizer

_FRAME = {
    **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": []},
    **{"normalizer": None, "post_processor": None},
}


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of a tokenizer.json with the same ids and the same decoded texts.

    An unknown character is an error there too.
    """
    alphabet = tokenizer.alphabet
    return _of_bytes() if alphabet is None else _of_characters(alphabet)


def parse_tokenizer_json(content: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer from which `tokenizer_json` gives exactly this content; None if there is none.

    >>> parse_tokenizer_json(tokenizer_json(Tokenizer("abc"))) == Tokenizer("abc")
    True
    """
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        return None
    if content == _of_bytes():
        return Tokenizer(None)
    alphabet = "".join(vocabulary)
    return Tokenizer(alphabet) if content == _of_characters(alphabet) else None


def _of_characters(alphabet: str) -> dict[str, Any]:
    return _FRAME | {
        "pre_tokenizer": {
            **{"type": "Split", "pattern": {"Regex": r"[\s\S]"}},
            **{"behavior": "Isolated", "invert": False},
        },
        "decoder": {"type": "Fuse"},
        # The library requires a name of unknown tokens; it is in no vocabulary of characters.
        "model": {
            "type": "WordLevel",
            "vocab": {character: i for i, character in enumerate(alphabet)},
            "unk_token": "[UNK]",
        },
    }


def _of_bytes() -> dict[str, Any]:
    options = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return _FRAME | {
        "pre_tokenizer": {"type": "ByteLevel", **options},
        "decoder": {"type": "ByteLevel", **options},
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False},
            **{"continuing_subword_prefix": None, "end_of_word_suffix": None},
            **{"byte_fallback": False, "ignore_merges": False, "merges": []},
            "vocab": {character: byte for byte, character in enumerate(_byte_characters())},
        },
    }


def _byte_characters() -> list[str]:
    """GPT-2's printable character of each byte: itself, or the next one from U+0100 on."""
    is_printable = [33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255 for b in range(256)]
    others = iter(range(256, 512))
    return [chr(byte if is_printable[byte] else next(others)) for byte in range(256)]
