"""Text to ids and back: one id a character, or one a byte of UTF-8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Tokenizer:
    """The alphabet of a run; None means bytes, which spell any text."""

    alphabet: str | None

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return 256 if self.alphabet is None else len(self.alphabet)

    def encode(self, text: str) -> np.ndarray:
        """Turn text into ids (uint16); an unknown character is a ValueError."""
        if self.alphabet is None:
            return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)
        known = np.array([ord(character) for character in self.alphabet])
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        unknown = np.flatnonzero(known[ids] != codes)
        if len(unknown):
            raise ValueError(
                f"text has {text[unknown[0]]!r} at position {unknown[0]}, a character that the run "
                f"was not trained on. Allowed are: {self.alphabet!r}. Write it with these, or "
                "train with --tokenizer byte, which knows every character."
            )
        return ids.astype(np.uint16)

    def decode(self, ids) -> str:
        """Turn ids into text; bytes that are no UTF-8 show as U+FFFD."""
        if self.alphabet is None:
            return bytes(int(i) for i in ids if i < 256).decode(errors="replace")
        return "".join(self.alphabet[int(i)] for i in ids if i < len(self.alphabet))


def tokenizer_of(kind: Literal["char", "byte"], text: str) -> Tokenizer:
    """The tokenizer for a text: its sorted characters, or bytes."""
    return Tokenizer(None if kind == "byte" else "".join(sorted(set(text))))
