"""The training text and the validation text of a run: where they are split, and their SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minigpt.data.shakespeare import VALIDATION_PLAYS, load_plays
from minigpt.data.sources import DOCUMENT_SEPARATOR, Source, find_sources

Paths = Path | str | Sequence[Path | str]


class Corpus(NamedTuple):
    """The training text and the validation text."""

    train: str
    validation: str
    sha256: str
    """SHA-256 of the text, as in TextSources; for all plays, of the training text and the
    validation text in UTF-8, one after the other"""


class TextSources(NamedTuple):
    """The sources of the training text, and of the validation text if it has its own.

    The SHA-256 of a text is that of its file's bytes (decompressed), as sha256sum prints it, or of
    the joined text in UTF-8 if there are several sources. With a validation text of its own it is
    that of the two SHA-256 in hexadecimal, with a newline between them.
    """

    data: tuple[Source, ...]
    val_data: tuple[Source, ...] | None
    """None: the last tenth of `data`, as in nanoGPT"""

    @property
    def size(self) -> int:
        """About the number of bytes."""
        return sum(source.size for source in (*self.data, *(self.val_data or ())))

    def sha256(self, advance: Callable[[int], None]) -> str:
        """The SHA-256 of the text; `advance` gets the number of bytes after each read."""
        digests: list[Any] = []
        if self.val_data is None and len(self.data) == 1:  # without decoding
            digests.append(hashlib.sha256())
            for _ in _watch(self.data[0].read(), advance, digests[0]):
                pass
        else:
            for _ in self.read(digests, advance):
                pass
        return combine_digests(digests)

    def read(self, digests: list[Any], advance: Callable[[int], None]) -> Iterator[tuple[int, str]]:
        """Yield (0, piece of `data`) and then (1, piece of `val_data`); append their digests."""
        for part, sources in enumerate((self.data, self.val_data)):
            if sources is not None:
                digests.append(hashlib.sha256())
                for piece in _read_joined(sources, digests[-1], advance):
                    yield part, piece

    def validation_start(self, sizes: Sequence[int]) -> int:
        """The index of the first validation character; `sizes` are the characters of both parts."""
        return validation_start(sizes[0]) if self.val_data is None else sizes[0]


def open_text(
    data: Paths | None, val_data: Paths | None = None, text_field: str = "text"
) -> TextSources:
    """Find the sources of a text; None: all of Shakespeare's plays."""
    if data is None:
        raw = "".join(load_plays().values()).encode()
        sources = (Source(Path("all plays"), lambda: iter([raw]), len(raw)),)
    else:
        sources = find_sources(as_paths(data), text_field)
    return TextSources(
        sources, None if val_data is None else find_sources(as_paths(val_data), text_field)
    )


def as_paths(data: Paths) -> tuple[Path, ...]:
    """One path or several as a tuple."""
    return (Path(data),) if isinstance(data, str | Path) else tuple(map(Path, data))


def load_text(
    data: Paths | None = None, *, val_data: Paths | None = None, text_field: str = "text"
) -> Corpus:
    """Read all plays, one play (play:NAME), or files and folders, into memory.

    The last tenth is for validation unless there is `val_data`; of all plays, four whole plays are.
    """
    if data is None and val_data is None:
        return _load_shakespeare()
    return read_corpus(open_text(data, val_data, text_field))


def read_corpus(texts: TextSources) -> Corpus:
    """Read the text into memory."""
    digests: list[Any] = []
    pieces: tuple[list[str], list[str]] = ([], [])
    for part, piece in texts.read(digests, lambda _: None):
        pieces[part].append(piece)
    train, validation = map("".join, pieces)
    if texts.val_data is None:
        split = validation_start(len(train))
        train, validation = train[:split], train[split:]
    return Corpus(train, validation, combine_digests(digests))


def validation_start(characters: int) -> int:
    """The index of the first validation character: 90 % of the text is for training."""
    return int(characters * 0.9)


def combine_digests(digests: Sequence[Any]) -> str:
    """The SHA-256 of a text from that of the training text, or of both texts."""
    values = [digest.hexdigest() for digest in digests]
    return values[0] if len(values) == 1 else hashlib.sha256("\n".join(values).encode()).hexdigest()


def _read_joined(
    sources: tuple[Source, ...], digest: Any, advance: Callable[[int], None]
) -> Iterator[str]:
    """The texts of the sources with separators between them."""
    is_joined = len(sources) > 1
    for number, source in enumerate(sources):
        blocks = _watch(source.read(), advance, None if is_joined else digest)
        separator = DOCUMENT_SEPARATOR if number else ""
        for piece in source.decode(blocks):
            piece, separator = separator + piece, ""
            if is_joined:
                digest.update(piece.encode())
            yield piece


def _watch(
    blocks: Iterator[bytes], advance: Callable[[int], None], digest: Any = None
) -> Iterator[bytes]:
    """Yield the blocks; `advance` gets the length of each, and `digest` the block."""
    for block in blocks:
        if digest is not None:
            digest.update(block)
        advance(len(block))
        yield block


def _load_shakespeare() -> Corpus:
    """All plays; four whole plays are for validation."""
    texts = load_plays()
    validation = "".join(texts.pop(name) for name in VALIDATION_PLAYS)
    train = "".join(texts.values())
    return Corpus(train, validation, hashlib.sha256((train + validation).encode()).hexdigest())
