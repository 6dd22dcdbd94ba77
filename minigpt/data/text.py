"""Text to train on and to validate on: Shakespeare's plays, one of them, or a UTF-8 file."""

from __future__ import annotations

import codecs
import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from minigpt.data.shakespeare import VALIDATION_PLAYS, is_play, load_plays, read_play

BLOCK_BYTES = 1 << 20  # bytes read at once


class Corpus(NamedTuple):
    """Text to train on and text to validate on."""

    train: str
    validation: str
    sha256: str
    """of the file's bytes, as sha256sum prints it; of the plays, all in UTF-8, validation last"""


def load_text(data: Path | None = None) -> Corpus:
    """Read the plays, or one of them (play:NAME), or a UTF-8 file.

    Of one play or a file the last tenth is for validation, as nanoGPT splits.
    """
    if data is None:
        return _load_shakespeare()
    raw = read_play(data) if is_play(data) else b"".join(read_blocks(data))
    text = "".join(decode_utf8([raw], data))
    split = validation_start(len(text))
    return Corpus(text[:split], text[split:], hashlib.sha256(raw).hexdigest())


def validation_start(characters: int) -> int:
    """Where a file of so many characters is split: nanoGPT's nine tenths."""
    return int(characters * 0.9)


def read_blocks(data: Path) -> Iterator[bytes]:
    """A file's bytes, some at a time; a file that cannot be read is a ValueError."""
    try:
        with Path(data).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        raise ValueError(f"data={str(data)!r} cannot be read: {error.strerror}.") from None


def decode_utf8(pieces: Iterable[bytes], data: Path) -> Iterator[str]:
    """The text of a file's bytes, as Path.read_text has it: UTF-8, every line's end a newline.

    A piece may end inside a character, or between a carriage return and its newline.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(utf8, translate=True)
    begin = read = 0
    try:
        for piece in itertools.chain(pieces, [b""]):
            begin = read - len(utf8.getstate()[0])  # what it kept is decoded with this piece
            read += len(piece)
            yield newlines.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data={str(data)!r} is not allowed: it must be UTF-8 text, and byte "
            f"{begin + error.start} is not. If it is text in another encoding, convert it, as "
            "iconv -f latin1 -t utf-8 does."
        ) from None


def _load_shakespeare() -> Corpus:
    """All plays; four whole ones are for validation."""
    texts = load_plays()
    validation = "".join(texts.pop(name) for name in VALIDATION_PLAYS)
    train = "".join(texts.values())
    return Corpus(train, validation, hashlib.sha256((train + validation).encode()).hexdigest())
