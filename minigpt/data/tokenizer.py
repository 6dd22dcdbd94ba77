"""Convert text to token ids and back: one id per character, or one per UTF-8 byte."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, SupportsInt

import numpy as np

MAX_ALPHABET = 1 << 16  # ids have 16 bits


@dataclass(frozen=True)
class Tokenizer:
    """The characters of a run in the order of their ids; None means UTF-8 bytes, for any text."""

    alphabet: str | None

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return 256 if self.alphabet is None else len(self.alphabet)

    def encode(self, text: str, *, offset: int = 0) -> np.ndarray:
        """Convert text to ids (uint16); an unknown character is a ValueError.

        `offset` is the position of `text` in a longer text, for the error message.
        """
        if self.alphabet is None:
            return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)
        known = code_points(self.alphabet)
        # The id of every code point up to the largest known one; larger ones are clipped to the
        # last entry, which is unknown.
        table = np.full(known.max(initial=0) + 2, -1, np.int32)
        table[known] = np.arange(len(known))
        ids = table.take(code_points(text), mode="clip")
        unknown = np.flatnonzero(ids < 0)
        if len(unknown):
            first = unknown[0]
            raise ValueError(
                f"text has {text[first]!r} at position {offset + first}, a character that the "
                f"tokenizer does not know. Use only {self.alphabet!r}, or a run of minigpt train "
                "--tokenizer byte, which knows every character."
            )
        return ids.astype(np.uint16)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Convert ids to text; bytes that are not valid UTF-8 become U+FFFD."""
        if self.alphabet is None:
            return bytes(i for i in map(int, ids) if 0 <= i < 256).decode(errors="replace")
        return "".join(self.alphabet[i] for i in map(int, ids) if 0 <= i < len(self.alphabet))


def code_points(text: str) -> np.ndarray:
    """The Unicode code points of a text (uint32)."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def build_tokenizer(kind: Literal["char", "byte"], text: str) -> Tokenizer:
    """Build a tokenizer of UTF-8 bytes, or of the sorted distinct characters of a text."""
    if kind == "byte":
        return Tokenizer(None)
    alphabet = "".join(sorted(set(text)))
    if len(alphabet) > MAX_ALPHABET:
        raise ValueError(
            f"tokenizer='char' is not allowed for a text of {len(alphabet):,} distinct characters: "
            f"there must be at most {MAX_ALPHABET:,}. Use --tokenizer byte."
        )
    return Tokenizer(alphabet)
