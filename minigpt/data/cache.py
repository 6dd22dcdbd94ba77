"""The cache of token ids in the user's cache folder: a text is tokenized once.

A cache entry is two files, named after the text's SHA-256, the tokenizer and FORMAT: the ids
(little-endian, 16 bits, or 32 for a vocabulary that needs them; those of the training text first)
and a JSON file with the sizes, the alphabet and a CRC-32. Every run checks the CRC-32, which covers
both files, and builds a damaged entry again. The content follows from the name: two runs that build
an entry at the same time write the same bytes to temporary files of their own and rename them. The
folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import platformdirs

from minigpt.atomic_write import open_atomic
from minigpt.data.decode import BLOCK_BYTES
from minigpt.data.subword import SubwordTokenizer
from minigpt.data.tokenizer import AnyTokenizer

FORMAT = 2
# A temporary file that was not written to for this long belongs to a killed process.
STALE_SECONDS = 3600.0


class CacheEntry(NamedTuple):
    """The JSON file of a cache entry."""

    alphabet: str | None
    """of a char tokenizer; None for the others"""
    train: int
    """number of tokens of the training text"""
    validation: int
    validation_characters: int
    crc32: int


def cache_dir() -> Path:
    """$MINIGPT_CACHE, or the user's cache folder."""
    return Path(os.environ.get("MINIGPT_CACHE") or platformdirs.user_cache_dir("minigpt"))


def cache_path(sha256: str, kind: str, tokenizer: AnyTokenizer | None) -> Path:
    """The file of the ids; `tokenizer` is one that is given, not built from the text."""
    if isinstance(tokenizer, SubwordTokenizer):
        kind = f"subword-{tokenizer.sha256}"
    elif tokenizer is not None and tokenizer.alphabet is not None:
        kind = f"{kind}-{hashlib.sha256(tokenizer.alphabet.encode()).hexdigest()[:16]}"
    return cache_dir() / f"{sha256}-{kind}-v{FORMAT}.ids"


def build_cache_entry(ids_path: Path, write_ids: Callable[[IO[bytes]], CacheEntry]) -> CacheEntry:
    """Write the ids, then the JSON file: an entry without it is not used."""
    ids_path.parent.mkdir(parents=True, exist_ok=True)
    for partial in ids_path.parent.glob("*.partial"):
        with contextlib.suppress(OSError):  # just renamed by another run, or of another user
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()
    with open_atomic(ids_path, shared=True) as file:
        entry = write_ids(file)
    with open_atomic(ids_path.with_suffix(".json"), shared=True) as file:
        file.write(json.dumps(entry._asdict()).encode())
    return entry


def cached_tokenizer(sha256: str, vocab_size: int, train: Callable[[], str]) -> str:
    """The tokenizer.json that `train` makes of a text; a text is trained on once.

    The file's first line is the SHA-256 of the rest. It is used by the version of `tokenizers` that
    wrote it, so that the tokenizer of a text does not depend on the cache.
    """
    version = importlib.metadata.version("tokenizers")
    path = cache_dir() / f"{sha256}-bpe-{vocab_size}-tokenizers-{version}-v{FORMAT}.json"
    with contextlib.suppress(OSError, ValueError):
        digest, text = path.read_text(encoding="utf-8").split("\n", 1)
        if digest == hashlib.sha256(text.encode()).hexdigest():
            return text
    text = train()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path, shared=True) as file:
        file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
    return text


def read_cache_entry(ids_path: Path) -> CacheEntry | None:
    """Read and verify a cache entry; None if it is missing or damaged."""
    try:
        entry = CacheEntry(**json.loads(ids_path.with_suffix(".json").read_bytes()))
        crc = 0
        # Not through a memory map: its pages would count as memory of this process.
        with ids_path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                crc = zlib.crc32(block, crc)
        return entry if entry_crc32(crc, entry) == entry.crc32 else None
    except (OSError, TypeError, ValueError):
        return None


def entry_crc32(ids_crc32: int, entry: CacheEntry) -> int:
    """The CRC-32 of both files of an entry, from that of the ids."""
    return zlib.crc32(json.dumps(entry._replace(crc32=0)).encode(), ids_crc32)
