"""Token ids of a text: a large file is tokenized once, cached, and memory-mapped by later runs.

A cache entry is two files, named after the text's SHA-256, the tokenizer and FORMAT: the ids
(little-endian, 16 bits, those of the training text first) and a JSON file with the sizes, the
alphabet and a CRC-32. Every run checks the CRC-32, which covers both files, and builds a damaged
entry again. The content follows from the name: two runs that build an entry at the same time write
the same bytes to temporary files of their own and rename them. The folder may be deleted at any
time.
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
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import platformdirs
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from minigpt.atomic_write import open_atomic
from minigpt.data.text import BLOCK_BYTES, decode_utf8, load_text, read_blocks, validation_start
from minigpt.data.tokenizer import Tokenizer, build_tokenizer, code_points

FORMAT = 1
# A file up to this size is tokenized in a tenth of a second, so it is not cached.
MAX_IN_MEMORY_BYTES = 1 << 23
# A temporary file that was not written to for this long belongs to a killed process.
STALE_SECONDS = 3600.0

Kind = Literal["char", "byte"]


class Dataset(NamedTuple):
    """Ids of the training and the validation text, and how they were obtained."""

    train: np.ndarray
    validation: np.ndarray
    tokenizer: Tokenizer
    sha256: str
    """SHA-256 of the text, as in text.Corpus"""
    validation_characters: int


class _CacheEntry(NamedTuple):
    """The JSON file of a cache entry."""

    alphabet: str | None
    train: int
    validation: int
    validation_characters: int
    crc32: int


class _Source(NamedTuple):
    """A large file, and how to tokenize it."""

    data: Path
    kind: Kind
    tokenizer: Tokenizer | None
    """use this one; None builds one of `kind` from the text"""
    advance: Callable[[int], None]
    """called with the number of bytes after each read"""

    def tokenizer_id(self) -> str:
        """The tokenizer's part of the cache entry's name."""
        if self.tokenizer is None or self.tokenizer.alphabet is None:
            return self.kind
        return f"{self.kind}-{hashlib.sha256(self.tokenizer.alphabet.encode()).hexdigest()[:16]}"


def load_dataset(data: Path | None, kind: Kind, tokenizer: Tokenizer | None = None) -> Dataset:
    """Tokenize the plays or a file, split as `load_text` does; ids of a large file are mapped.

    Uses `tokenizer`, or builds one of `kind` from the text.

    Raises:
      ValueError: the file cannot be read, is not UTF-8, or changes while it is read; the ids of a
        large file cannot be written; or `tokenizer` does not know a character.
    """
    if data is None or not _is_large(Path(data)):
        text = load_text(data)
        tokenizer = tokenizer or build_tokenizer(kind, text.train + text.validation)
        train = tokenizer.encode(text.train)
        validation = tokenizer.encode(text.validation, offset=len(text.train))
        return Dataset(train, validation, tokenizer, text.sha256, len(text.validation))
    return _load_large(Path(data), kind, tokenizer)


def cache_dir() -> Path:
    """$MINIGPT_CACHE, or the user's cache folder."""
    return Path(os.environ.get("MINIGPT_CACHE") or platformdirs.user_cache_dir("minigpt"))


def _is_large(data: Path) -> bool:
    # A pipe can be read only once.
    return data.is_file() and data.stat().st_size > MAX_IN_MEMORY_BYTES


def _load_large(data: Path, kind: Kind, tokenizer: Tokenizer | None) -> Dataset:
    """Load from the cache; if it cannot be written, from an unnamed temporary file."""
    try:
        with _progress(3 * data.stat().st_size) as advance:
            return _load_cached(_Source(data, kind, tokenizer, advance))
    except OSError as error:
        print(
            f"minigpt: cannot write the cache {str(cache_dir())!r} ({error.strerror}); the text is "
            "tokenized for this run only. Set MINIGPT_CACHE to another folder.",
            file=sys.stderr,
        )
    try:
        with _progress(3 * data.stat().st_size) as advance, tempfile.TemporaryFile() as file:
            sha256 = _sha256(data, advance)
            entry = _tokenize(_Source(data, kind, tokenizer, advance), sha256, file)
            file.flush()
            return _memory_map(file, entry, sha256)
    except OSError as error:
        raise ValueError(
            f"the ids of data={str(data)!r} can be written neither to the cache "
            f"{str(cache_dir())!r} nor to a temporary file ({error.strerror}). Set "
            "MINIGPT_CACHE to a folder with room for two bytes per token."
        ) from None


def _load_cached(source: _Source) -> Dataset:
    sha256 = _sha256(source.data, source.advance)
    ids_path = cache_dir() / f"{sha256}-{source.tokenizer_id()}-v{FORMAT}.ids"
    entry = _read_cache_entry(ids_path) or _build_cache_entry(source, sha256, ids_path)
    return _memory_map(ids_path, entry, sha256)


def _sha256(data: Path, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    for block in read_blocks(data):
        digest.update(block)
        advance(len(block))
    return digest.hexdigest()


def _build_cache_entry(source: _Source, sha256: str, ids_path: Path) -> _CacheEntry:
    """Write the ids, then the JSON file: an entry without it is not used."""
    ids_path.parent.mkdir(parents=True, exist_ok=True)
    for partial in ids_path.parent.glob("*.partial"):
        with contextlib.suppress(OSError):  # just renamed by another run, or of another user
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()
    with open_atomic(ids_path, shared=True) as file:
        entry = _tokenize(source, sha256, file)
    with open_atomic(ids_path.with_suffix(".json"), shared=True) as file:
        file.write(json.dumps(entry._asdict()).encode())
    return entry


def _tokenize(source: _Source, sha256: str, file: IO[bytes]) -> _CacheEntry:
    """Read the text twice: count and collect its characters, then write its ids."""
    occurs, characters = np.zeros(sys.maxunicode + 1, bool), 0
    for text in _read_pieces(source, sha256):
        occurs[code_points(text)] = True
        characters += len(text)
    alphabet = "".join(map(chr, np.flatnonzero(occurs)))
    tokenizer = source.tokenizer or build_tokenizer(source.kind, alphabet)
    split = left_to_train = validation_start(characters)
    crc, sizes, offset = 0, [0, 0], 0  # sizes: tokens of the training, of the validation text
    for text in _read_pieces(source, sha256):
        for part, piece in enumerate((text[:left_to_train], text[left_to_train:])):
            ids = tokenizer.encode(piece, offset=offset).astype("<u2").tobytes()
            offset += len(piece)
            file.write(ids)
            sizes[part] += len(ids) // 2
            crc = zlib.crc32(ids, crc)
        left_to_train = max(0, left_to_train - len(text))
    entry = _CacheEntry(tokenizer.alphabet, sizes[0], sizes[1], characters - split, 0)
    return entry._replace(crc32=_entry_crc32(crc, entry))


def _read_pieces(source: _Source, sha256: str) -> Iterator[str]:
    """Yield a file's text piece by piece; raise ValueError if its SHA-256 has changed."""
    digest = hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        for block in read_blocks(source.data):
            digest.update(block)
            source.advance(len(block))
            yield block

    yield from decode_utf8(blocks(), source.data)
    if digest.hexdigest() != sha256:
        raise ValueError(
            f"data={str(source.data)!r} changed while it was read. Run the command again."
        )


def _read_cache_entry(ids_path: Path) -> _CacheEntry | None:
    """Read and verify a cache entry; None if it is missing or damaged."""
    try:
        entry = _CacheEntry(**json.loads(ids_path.with_suffix(".json").read_bytes()))
        crc = 0
        # Not through a memory map: its pages would count as memory of this process.
        with ids_path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                crc = zlib.crc32(block, crc)
        return entry if _entry_crc32(crc, entry) == entry.crc32 else None
    except (OSError, TypeError, ValueError):
        return None


def _entry_crc32(ids_crc32: int, entry: _CacheEntry) -> int:
    return zlib.crc32(json.dumps(entry._replace(crc32=0)).encode(), ids_crc32)


def _memory_map(file: Any, entry: _CacheEntry, sha256: str) -> Dataset:
    ids = np.memmap(file, "<u2", mode="r", shape=(entry.train + entry.validation,))
    parts = ids[: entry.train], ids[entry.train :]
    return Dataset(*parts, Tokenizer(entry.alphabet), sha256, entry.validation_characters)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Count bytes; show a progress bar on a terminal after two seconds."""
    columns = TextColumn("tokenizing"), BarColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=total)
    start_time = time.monotonic()

    def advance(count: int) -> None:
        bar.advance(task, count)
        is_slow = time.monotonic() - start_time > 2
        if is_slow and bar.console.is_terminal and not bar.live.is_started:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
