"""A text as ids to train on: a large file is tokenised once, and memory-mapped ever after.

A cache entry is two files, named after the text's SHA-256, the tokenizer and FORMAT: the ids
(little-endian, 16 bits, the training text's first), and a JSON of what else there is to know. Its
CRC-32 covers both and is checked at every start, so a damaged entry is made again. What is written
depends on the name alone: two runs at once write the same bytes, each under a name of its own, and
rename them into place. The folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import platformdirs
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from minigpt.atomic_write import open_atomic
from minigpt.data.text import BLOCK_BYTES, decode_utf8, load_text, read_blocks, validation_start
from minigpt.data.tokenizer import Tokenizer, build_tokenizer, code_points

FORMAT = 1
MAX_IN_MEMORY_BYTES = (
    1 << 23
)  # bytes: a smaller file takes a tenth of a second, and no place in the cache
STALE_SECONDS = 3600.0  # seconds since a partial file was last written: whoever wrote it was killed


class Dataset(NamedTuple):
    """Ids to train on and to validate on, and what they are ids of."""

    train: np.ndarray
    validation: np.ndarray
    tokenizer: Tokenizer
    sha256: str
    """of the text, as text.Corpus has it"""
    validation_characters: int


class _CacheEntry(NamedTuple):
    """What a cache entry's JSON says."""

    alphabet: str | None
    train: int
    validation: int
    validation_characters: int
    crc32: int


def load_dataset(
    data: Path | None, kind: Literal["char", "byte"], given: Tokenizer | None = None
) -> Dataset:
    """Ids of the plays or of a file, split as `load_text` splits; a large file's are mapped.

    Of the text's own tokenizer of that kind, or of the one that is given.

    Raises:
      ValueError: the file cannot be read, is not UTF-8, or changes while it is read; or the ids of
        a large one can be written nowhere; or the tokenizer that is given lacks a character.
    """
    if data is None or not _is_large(Path(data)):
        text = load_text(data)
        tokenizer = given or build_tokenizer(kind, text.train + text.validation)
        ids = tokenizer.encode(text.train), tokenizer.encode(text.validation, len(text.train))
        return Dataset(*ids, tokenizer, text.sha256, len(text.validation))
    return _load_large(Path(data), kind, given)


def cache_dir() -> Path:
    """$MINIGPT_CACHE, or the user's cache folder."""
    return Path(os.environ.get("MINIGPT_CACHE") or platformdirs.user_cache_dir("minigpt"))


def _is_large(data: Path) -> bool:
    return (
        data.is_file() and data.stat().st_size > MAX_IN_MEMORY_BYTES
    )  # a pipe can be read only once


def _load_large(data: Path, kind: Literal["char", "byte"], given: Tokenizer | None) -> Dataset:
    """From the cache; where that cannot be written, from a temporary file with no name."""
    try:
        with _progress(3 * data.stat().st_size) as advance:
            return _load_cached(data, kind, given, advance)
    except OSError as error:
        print(
            f"minigpt: the cache {str(cache_dir())!r} cannot be written ({error.strerror}), so "
            "the text is tokenised for this run only. MINIGPT_CACHE names another folder.",
            file=sys.stderr,
        )
    try:
        with _progress(3 * data.stat().st_size) as advance, tempfile.TemporaryFile() as file:
            sha256 = _sha256(data, advance)
            facts = _tokenize(data, kind, given, sha256, file, advance)
            file.flush()
            return _memory_map(file, facts, sha256)
    except OSError as error:
        raise ValueError(
            f"the ids of data={str(data)!r} can be written neither to the cache "
            f"{str(cache_dir())!r} nor to a temporary file ({error.strerror}). Set "
            "MINIGPT_CACHE to a folder with room for two bytes a token."
        ) from None


def _load_cached(data: Path, kind, given, advance: Callable[[int], None]) -> Dataset:
    sha256 = _sha256(data, advance)
    ids = cache_dir() / f"{sha256}-{_tokenizer_id(kind, given)}-v{FORMAT}.ids"
    facts = _read_cache_entry(ids) or _build_cache_entry(data, kind, given, sha256, ids, advance)
    return _memory_map(ids, facts, sha256)


def _tokenizer_id(kind: str, given: Tokenizer | None) -> str:
    """A tokenizer's part of the name: an alphabet that is given by its hash."""
    if given is None or given.alphabet is None:
        return kind
    return f"{kind}-{hashlib.sha256(given.alphabet.encode()).hexdigest()[:16]}"


def _sha256(data: Path, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    for block in read_blocks(data):
        digest.update(block)
        advance(len(block))
    return digest.hexdigest()


def _build_cache_entry(data: Path, kind, given, sha256: str, ids: Path, advance) -> _CacheEntry:
    """Write an entry: first the ids, then the JSON that makes them count."""
    ids.parent.mkdir(parents=True, exist_ok=True)
    for partial in ids.parent.glob("*.partial"):
        with contextlib.suppress(OSError):  # another run has just renamed it, or another user's
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()
    with open_atomic(ids, shared=True) as file:
        facts = _tokenize(data, kind, given, sha256, file, advance)
    with open_atomic(ids.with_suffix(".json"), shared=True) as file:
        file.write(json.dumps(facts._asdict()).encode())
    return facts


def _tokenize(data: Path, kind, given, sha256: str, file, advance) -> _CacheEntry:
    """Read the text twice: for its characters and their number, then for its ids."""
    seen, characters = np.zeros(sys.maxunicode + 1, bool), 0
    for text in _read_pieces(data, sha256, advance):
        seen[code_points(text)] = True
        characters += len(text)
    tokenizer = given or build_tokenizer(kind, "".join(map(chr, np.flatnonzero(seen))))
    split = to_split = validation_start(characters)
    crc, sizes, begin = 0, [0, 0], 0  # sizes of the training text, of the validation text
    for text in _read_pieces(data, sha256, advance):
        for part, piece in enumerate((text[:to_split], text[to_split:])):
            ids = tokenizer.encode(piece, begin).astype("<u2").tobytes()
            begin += len(piece)
            file.write(ids)
            sizes[part] += len(ids) // 2
            crc = zlib.crc32(ids, crc)
        to_split = max(0, to_split - len(text))
    facts = _CacheEntry(tokenizer.alphabet, sizes[0], sizes[1], characters - split, 0)
    return facts._replace(crc32=_entry_crc32(crc, facts))


def _read_pieces(data: Path, sha256: str, advance: Callable[[int], None]) -> Iterator[str]:
    """A file's text, some at a time, which must be the text that was hashed."""
    digest = hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        for block in read_blocks(data):
            digest.update(block)
            advance(len(block))
            yield block

    yield from decode_utf8(blocks(), data)
    if digest.hexdigest() != sha256:
        raise ValueError(f"data={str(data)!r} changed while it was read. Start again.")


def _read_cache_entry(ids: Path) -> _CacheEntry | None:
    """An entry's facts; None where there is no entry, or a damaged one."""
    try:
        facts = _CacheEntry(**json.loads(ids.with_suffix(".json").read_bytes()))
        crc = 0
        with ids.open("rb") as file:  # not through the map: its pages would count as our memory
            while block := file.read(BLOCK_BYTES):
                crc = zlib.crc32(block, crc)
        return facts if _entry_crc32(crc, facts) == facts.crc32 else None
    except (OSError, TypeError, ValueError):
        return None


def _entry_crc32(crc: int, facts: _CacheEntry) -> int:
    return zlib.crc32(json.dumps(facts._replace(crc32=0)).encode(), crc)


def _memory_map(file: Any, facts: _CacheEntry, sha256: str) -> Dataset:
    ids = np.memmap(file, "<u2", mode="r", shape=(facts.train + facts.validation,))
    parts = ids[: facts.train], ids[facts.train :]
    return Dataset(*parts, Tokenizer(facts.alphabet), sha256, facts.validation_characters)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Count bytes; who waits at a terminal for more than two seconds sees a bar."""
    columns = TextColumn("tokenising"), BarColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=total)
    begin = time.monotonic()

    def advance(count: int) -> None:
        bar.advance(task, count)
        waited = time.monotonic() - begin > 2
        if waited and bar.console.is_terminal and not bar.live.is_started:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
