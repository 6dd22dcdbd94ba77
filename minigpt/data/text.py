"""The training and validation text: all of Shakespeare's plays, one play, or a UTF-8 file."""

from __future__ import annotations

import codecs
import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from minigpt.data.shakespeare import VALIDATION_PLAYS, is_play, load_plays, read_play

BLOCK_BYTES = 1 << 20  # bytes per read


class Corpus(NamedTuple):
    """The training text and the validation text."""

    train: str
    validation: str
    sha256: str
    """SHA-256 of the file's bytes, as sha256sum prints it; for all plays, of the training text and
    the validation text in UTF-8, one after the other"""


def load_text(data: Path | None = None) -> Corpus:
    """Read all plays, one play (play:NAME) or a UTF-8 file.

    The last tenth of a play or a file is for validation, as in nanoGPT.
    """
    if data is None:
        return _load_shakespeare()
    raw = read_play(data) if is_play(data) else b"".join(read_blocks(data))
    text = "".join(decode_utf8([raw], data))
    split = validation_start(len(text))
    return Corpus(text[:split], text[split:], hashlib.sha256(raw).hexdigest())


def validation_start(characters: int) -> int:
    """The index of the first validation character: 90 % of the text is for training."""
    return int(characters * 0.9)


def read_blocks(data: Path) -> Iterator[bytes]:
    """Yield a file's bytes block by block; a file that cannot be read is a ValueError."""
    try:
        with Path(data).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        raise ValueError(f"data={str(data)!r} cannot be read: {error.strerror}.") from None


def decode_utf8(pieces: Iterable[bytes], data: Path) -> Iterator[str]:
    """Decode UTF-8 and normalize line ends to newlines, as Path.read_text does.

    A piece may end inside a character, or between a carriage return and its newline.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(utf8, translate=True)
    piece_start = bytes_read = 0
    try:
        for piece in itertools.chain(pieces, [b""]):
            # The decoder still holds the bytes of an incomplete character.
            piece_start = bytes_read - len(utf8.getstate()[0])
            bytes_read += len(piece)
            yield newlines.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data={str(data)!r} is not allowed: it must be UTF-8 text, and byte "
            f"{piece_start + error.start} is not. Convert text in another encoding, for example "
            "with iconv -f latin1 -t utf-8."
        ) from None


def _load_shakespeare() -> Corpus:
    """All plays; four whole plays are for validation."""
    texts = load_plays()
    validation = "".join(texts.pop(name) for name in VALIDATION_PLAYS)
    train = "".join(texts.values())
    return Corpus(train, validation, hashlib.sha256((train + validation).encode()).hexdigest())
