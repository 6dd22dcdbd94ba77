"""Text to ids and back: one id a character, or one a byte of UTF-8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

MAX_ALPHABET = 1 << 16  # characters that ids of 16 bits can tell apart


@dataclass(frozen=True)
class Tokenizer:
    """The alphabet of a run; None means bytes, which spell any text."""

    alphabet: str | None

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return 256 if self.alphabet is None else len(self.alphabet)

    def encode(self, text: str, begin: int = 0) -> np.ndarray:
        """Turn text into ids (uint16); an unknown character is a ValueError.

        `begin` is the text's place in a longer one, for the error.
        """
        if self.alphabet is None:
            return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)
        known, codes = code_points(self.alphabet), code_points(text)
        table = np.full(known.max(initial=0) + 2, -1, np.int32)  # of every code point, and one more
        table[known] = np.arange(len(known))
        ids = table.take(codes, mode="clip")
        unknown = np.flatnonzero(ids < 0)
        if len(unknown):
            raise ValueError(
                f"text has {text[unknown[0]]!r} at position {begin + unknown[0]}, a character that "
                f"the run was not trained on. Allowed are: {self.alphabet!r}. Write it with these, "
                "or train with --tokenizer byte, which knows every character."
            )
        return ids.astype(np.uint16)

    def decode(self, ids) -> str:
        """Turn ids into text; bytes that are no UTF-8 show as U+FFFD."""
        if self.alphabet is None:
            return bytes(int(i) for i in ids if i < 256).decode(errors="replace")
        return "".join(self.alphabet[int(i)] for i in ids if i < len(self.alphabet))


def code_points(text: str) -> np.ndarray:
    """A text's characters as numbers."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def build_tokenizer(kind: Literal["char", "byte"], text: str) -> Tokenizer:
    """The tokenizer for a text, or for its distinct characters: these, sorted, or bytes."""
    if kind == "byte":
        return Tokenizer(None)
    alphabet = "".join(sorted(set(text)))
    if len(alphabet) > MAX_ALPHABET:
        raise ValueError(
            f"tokenizer='char' is not allowed for a text of {len(alphabet):,} distinct characters: "
            f"there must be at most {MAX_ALPHABET:,}. Take --tokenizer byte."
        )
    return Tokenizer(alphabet)
