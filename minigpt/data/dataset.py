"""Token ids of a text: a large text is tokenized once, cached, and memory-mapped by later runs."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from minigpt.config import Config
from minigpt.data.cache import (
    CacheEntry,
    build_cache_entry,
    cache_dir,
    cache_path,
    entry_crc32,
    read_cache_entry,
)
from minigpt.data.sources import is_stream
from minigpt.data.text import (
    Corpus,
    Paths,
    TextSources,
    as_paths,
    combine_digests,
    load_text,
    open_text,
    read_corpus,
)
from minigpt.data.token_ids import is_token_folder, load_token_ids, token_id_tokenizer
from minigpt.data.tokenizer import Tokenizer, build_tokenizer, code_points

# A text up to this size is tokenized in a tenth of a second, so it is not cached.
MAX_IN_MEMORY_BYTES = 1 << 23

Kind = Literal["char", "byte"]


class Dataset(NamedTuple):
    """Ids of the training and the validation text, and how they were obtained."""

    train: np.ndarray
    validation: np.ndarray
    tokenizer: Tokenizer
    sha256: str
    """SHA-256 of the text, as in text.Corpus"""
    validation_characters: int


class _Work(NamedTuple):
    """A large text, and how to tokenize it."""

    texts: TextSources
    name: str
    """of the text, in errors"""
    kind: Kind
    tokenizer: Tokenizer | None
    """use this one; None builds one of `kind` from the text"""
    advance: Callable[[int], None]
    """called with the number of bytes after each read"""


def load_run_dataset(config: Config, tokenizer: Tokenizer | None = None) -> Dataset:
    """Tokenize the text that the settings of a run name; see `load_dataset`."""
    return load_dataset(
        config.data,
        config.tokenizer,
        tokenizer,
        val_data=config.val_data,
        text_field=config.text_field,
    )


def load_dataset(
    data: Paths | None,
    kind: Kind,
    tokenizer: Tokenizer | None = None,
    *,
    val_data: Paths | None = None,
    text_field: str = "text",
) -> Dataset:
    """Tokenize a text, split as `load_text` does; the ids of a large one are memory-mapped.

    Uses `tokenizer`, or builds one of `kind` from the training and the validation text.

    Raises:
      ValueError: a file cannot be read, is not UTF-8, or changes while it is read; the ids of a
        large text cannot be written; or `tokenizer` does not know a character.
    """
    paths = () if data is None else as_paths(data)
    everything = (*paths, *(as_paths(val_data) if val_data is not None else ()))
    if folders := tuple(filter(is_token_folder, everything)):
        return Dataset(*load_token_ids(paths, val_data, token_id_tokenizer(kind, folders)))
    if not everything:
        return _tokenize_in_memory(load_text(), kind, tokenizer)
    texts = open_text(data, val_data, text_field)
    if any(map(is_stream, everything)) or texts.size <= MAX_IN_MEMORY_BYTES:
        has_own = val_data is not None
        return _tokenize_in_memory(read_corpus(texts), kind, tokenizer, has_own_validation=has_own)
    return _load_large(texts, ", ".join(map(str, everything)), kind, tokenizer)


def _tokenize_in_memory(
    text: Corpus, kind: Kind, tokenizer: Tokenizer | None, *, has_own_validation: bool = False
) -> Dataset:
    tokenizer = tokenizer or build_tokenizer(kind, text.train + text.validation)
    train = tokenizer.encode(text.train)
    offset = 0 if has_own_validation else len(text.train)
    validation = tokenizer.encode(text.validation, offset=offset)
    return Dataset(train, validation, tokenizer, text.sha256, len(text.validation))


def _load_large(texts: TextSources, name: str, kind: Kind, tokenizer: Tokenizer | None) -> Dataset:
    """Load from the cache; if it cannot be written, from an unnamed temporary file."""
    try:
        with _progress(3 * texts.size) as advance:
            return _load_cached(_Work(texts, name, kind, tokenizer, advance))
    except OSError as error:
        print(
            f"minigpt: cannot write the cache {str(cache_dir())!r} ({error.strerror}); the text is "
            "tokenized for this run only. Set MINIGPT_CACHE to another folder.",
            file=sys.stderr,
        )
    try:
        with _progress(3 * texts.size) as advance, tempfile.TemporaryFile() as file:
            sha256 = texts.sha256(advance)
            entry = _tokenize(_Work(texts, name, kind, tokenizer, advance), sha256, file)
            file.flush()
            return _memory_map(file, entry, sha256)
    except OSError as error:
        raise ValueError(
            f"the ids of data={name!r} can be written neither to the cache "
            f"{str(cache_dir())!r} nor to a temporary file ({error.strerror}). Set "
            "MINIGPT_CACHE to a folder with room for two bytes per token."
        ) from None


def _load_cached(work: _Work) -> Dataset:
    sha256 = work.texts.sha256(work.advance)
    ids_path = cache_path(sha256, work.kind, work.tokenizer)
    entry = read_cache_entry(ids_path)
    entry = entry or build_cache_entry(ids_path, lambda file: _tokenize(work, sha256, file))
    return _memory_map(ids_path, entry, sha256)


def _tokenize(work: _Work, sha256: str, file: IO[bytes]) -> CacheEntry:
    """Read the text twice: count and collect its characters, then write its ids."""
    occurs, characters = np.zeros(sys.maxunicode + 1, bool), [0, 0]
    for part, text in _read_unchanged(work, sha256):
        occurs[code_points(text)] = True
        characters[part] += len(text)
    alphabet = "".join(map(chr, np.flatnonzero(occurs)))
    tokenizer = work.tokenizer or build_tokenizer(work.kind, alphabet)
    split = left_to_train = work.texts.validation_start(characters)
    crc, sizes, offsets = 0, [0, 0], [0, 0]  # sizes: tokens of the training, the validation text
    for part, text in _read_unchanged(work, sha256):
        for half, piece in enumerate((text[:left_to_train], text[left_to_train:])):
            ids = tokenizer.encode(piece, offset=offsets[part]).astype("<u2").tobytes()
            offsets[part] += len(piece)
            file.write(ids)
            sizes[half] += len(ids) // 2
            crc = zlib.crc32(ids, crc)
        left_to_train = max(0, left_to_train - len(text))
    entry = CacheEntry(tokenizer.alphabet, sizes[0], sizes[1], sum(characters) - split, 0)
    return entry._replace(crc32=entry_crc32(crc, entry))


def _read_unchanged(work: _Work, sha256: str) -> Iterator[tuple[int, str]]:
    """Yield a text piece by piece; raise ValueError if its SHA-256 has changed."""
    digests: list[Any] = []
    yield from work.texts.read(digests, work.advance)
    if combine_digests(digests) != sha256:
        raise ValueError(f"data={work.name!r} changed while it was read. Run the command again.")


def _memory_map(file: Any, entry: CacheEntry, sha256: str) -> Dataset:
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
