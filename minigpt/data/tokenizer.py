"""Convert text to token ids and back: one id per character, or one per UTF-8 byte; and the choice
of a tokenizer by its name.
"""

from __future__ import annotations

import codecs
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsInt, overload

import numpy as np

from minigpt.data.bpe import train_bpe
from minigpt.data.subword import MarkedIds, SubwordTokenizer

MAX_ALPHABET = 1 << 16  # ids have 16 bits


@dataclass(frozen=True)
class Tokenizer:
    """The characters of a run in the order of their ids; None means UTF-8 bytes, for any text."""

    alphabet: str | None

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return 256 if self.alphabet is None else len(self.alphabet)

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """Of the ids: 16 bits."""
        return np.uint16

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
                f"tokenizer does not know; in all these: {_list_characters(text, unknown)}. Remove "
                "them, or train again with minigpt train --tokenizer byte, which knows every "
                "character."
            )
        return ids.astype(np.uint16)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Convert ids to text; bytes that are not valid UTF-8 become U+FFFD."""
        if self.alphabet is None:
            return bytes(i for i in map(int, ids) if 0 <= i < 256).decode(errors="replace")
        return "".join(self.alphabet[i] for i in map(int, ids) if 0 <= i < len(self.alphabet))

    def encode_pieces(self, pieces: Iterable[str], *, offset: int = 0) -> Iterator[np.ndarray]:
        """The ids of a text that is given piece by piece."""
        for piece in pieces:
            yield self.encode(piece, offset=offset)
            offset += len(piece)

    def make_decoder(self) -> Callable[[Sequence[int], bool], str]:
        """A function of the next ids, and whether they are the last, to the text they complete."""
        if self.alphabet is not None:
            return lambda ids, is_last: self.decode(ids)
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda ids, is_last: utf8.decode(
            bytes(i for i in ids if 0 <= i < 256), final=is_last
        )

    def token_ends(self, text: str) -> np.ndarray:
        """The number of bytes of the text up to the end of each of its tokens."""
        data = text if self.alphabet is not None else text.encode()
        return np.cumsum([len(part.encode()) if isinstance(part, str) else 1 for part in data])

    def encode_marked(self, texts: Sequence[str]) -> list[MarkedIds]:
        """The ids of texts and the ends of their tokens; there are no special tokens."""
        return [MarkedIds(self.encode(text), self.token_ends(text)) for text in texts]


AnyTokenizer = Tokenizer | SubwordTokenizer


def _list_characters(text: str, positions: np.ndarray, most: int = 20) -> str:
    """The characters at some positions, each once, and how many more there are."""
    characters = sorted({text[i] for i in positions})
    more = f" and {len(characters) - most} more" if len(characters) > most else ""
    return f"{''.join(characters[:most])!r}{more}"


def code_points(text: str) -> np.ndarray:
    """The Unicode code points of a text (uint32)."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


@overload
def build_tokenizer(kind: Literal["char", "byte"], text: str) -> Tokenizer: ...


@overload
def build_tokenizer(kind: str, text: str, vocab_size: int | None = None) -> AnyTokenizer: ...


def build_tokenizer(kind: str, text: str, vocab_size: int | None = None) -> AnyTokenizer:
    """Build the tokenizer of a name: see `Config.tokenizer`.

    `text` has the characters of a char tokenizer, and is what a bpe tokenizer is trained on, to
    `vocab_size` entries.
    """
    if kind == "bpe":
        return train_bpe([text], vocab_size)
    if kind not in ("char", "byte"):
        return SubwordTokenizer.from_file(kind)
    if kind == "byte":
        return Tokenizer(None)
    alphabet = "".join(sorted(set(text)))
    if len(alphabet) > MAX_ALPHABET:
        raise ValueError(
            f"tokenizer='char' is not allowed for a text of {len(alphabet):,} distinct characters: "
            f"there must be at most {MAX_ALPHABET:,}. Use --tokenizer byte."
        )
    return Tokenizer(alphabet)


def tokenizer_content(tokenizer: AnyTokenizer) -> dict[str, Any]:
    """The whole tokenizer as JSON values: {"alphabet": ...} or {"tokenizer_json": ...}.

    >>> tokenizer_content(Tokenizer("ab")), tokenizer_from_content({"alphabet": None})
    ({'alphabet': 'ab'}, Tokenizer(alphabet=None))
    """
    if isinstance(tokenizer, Tokenizer):
        return {"alphabet": tokenizer.alphabet}
    return {"tokenizer_json": json.loads(tokenizer.tokenizer_json)}


def tokenizer_from_content(content: dict[str, Any]) -> AnyTokenizer:
    """The tokenizer of `tokenizer_content`; content without one is a KeyError or a ValueError."""
    if "tokenizer_json" in content:
        return _validated(json.dumps(content["tokenizer_json"]))
    return Tokenizer(content["alphabet"])


@functools.lru_cache(maxsize=4)
def _validated(tokenizer_json: str) -> SubwordTokenizer:
    tokenizer = SubwordTokenizer(tokenizer_json)
    _ = tokenizer.vocab_size  # a ValueError if it is damaged
    return tokenizer
