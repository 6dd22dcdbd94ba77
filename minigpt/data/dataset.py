"""Token ids of a text: a large text is tokenized once, cached, and memory-mapped by later runs."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from minigpt.config import Config
from minigpt.data.answers import Answers, describe_unfit, encode_answers, require_answers
from minigpt.data.bpe import DEFAULT_VOCAB_SIZE, train_bpe
from minigpt.data.cache import (
    CacheEntry,
    build_cache_entry,
    cache_dir,
    cache_path,
    cached_tokenizer,
    entry_crc32,
    read_cache_entry,
)
from minigpt.data.chat_template import ChatTemplate, plain_template
from minigpt.data.conversations import are_conversations, read_conversations
from minigpt.data.sources import is_stream
from minigpt.data.subword import SubwordTokenizer
from minigpt.data.text import (
    Corpus,
    Paths,
    TextSources,
    as_paths,
    combine_digests,
    load_text,
    open_text,
    read_corpus,
    validation_start,
)
from minigpt.data.token_ids import is_token_folder, load_token_ids, token_id_tokenizer
from minigpt.data.tokenizer import AnyTokenizer, Tokenizer, build_tokenizer, code_points

# A text up to this size is tokenized in a tenth of a second, so it is not cached.
MAX_IN_MEMORY_BYTES = 1 << 23


class Dataset(NamedTuple):
    """Ids of the training and the validation text, and how they were obtained."""

    train: np.ndarray | Answers
    """conversations are Answers"""
    validation: np.ndarray | Answers
    tokenizer: AnyTokenizer
    sha256: str
    """SHA-256 of the text, as in text.Corpus, or of the conversations' files"""
    validation_characters: int
    notes: tuple[str, ...] = ()
    """lines for the screen about conversations that do not fit"""

    @property
    def predicted_tokens(self) -> int:
        """The number of tokens of the validation text, or of its answers."""
        data = self.validation
        return data.answer_tokens if isinstance(data, Answers) else len(data)


class _Work(NamedTuple):
    """A large text, and how to tokenize it."""

    texts: TextSources
    name: str
    """of the text, in errors"""
    kind: str
    tokenizer: AnyTokenizer | None
    """use this one; None builds one of `kind` from the text"""
    vocab_size: int | None
    """of a bpe tokenizer that is built"""
    advance: Callable[[int], None]
    """called with the number of bytes after each read"""


def load_run_dataset(
    config: Config,
    tokenizer: AnyTokenizer | None = None,
    template: ChatTemplate | None = None,
) -> Dataset:
    """Tokenize the data of a run: a text, see `load_dataset`, or conversations.

    The template of conversations is the plain one if it is None.
    """
    if are_conversations((*(config.data or ()), *(config.val_data or ())), config.text_field):
        if config.data is None:
            raise ValueError(
                "data=None is not allowed with conversations in val_data: it must be conversations "
                "too. Set --data FILE."
            )
        return load_conversations(
            config.data,
            config.val_data,
            tokenizer or _tokenizer_of_conversations(config.tokenizer),
            template,
            config.model.block_size,
        )
    return load_dataset(
        config.data,
        config.tokenizer,
        tokenizer,
        val_data=config.val_data,
        text_field=config.text_field,
        vocab_size=config.vocab_size,
    )


def load_conversations(
    data: tuple[Path, ...],
    val_data: tuple[Path, ...] | None,
    tokenizer: AnyTokenizer,
    template: ChatTemplate | None,
    block_size: int,
) -> Dataset:
    """Tokenize conversations; the last tenth is for validation unless there is `val_data`.

    Raises:
      ValueError: a file or a line is not allowed, or a part has no answer within block_size.
    """
    template = template or plain_template(tokenizer)
    train, sha256 = read_conversations(data)
    if val_data is None:
        split = validation_start(len(train))
        train, validation = train[:split], train[split:]
    else:
        validation, digest = read_conversations(val_data)
        sha256 = hashlib.sha256(f"{sha256}\nvalidation {digest}".encode()).hexdigest()
    parts: list[Answers] = []
    notes: list[str] = []
    for name, part in (("training", train), ("validation", validation)):
        encoded = encode_answers(part, tokenizer, template, block_size)
        if part or data:
            require_answers(encoded, name, block_size)
        parts.append(encoded.answers)
        notes += describe_unfit(encoded, name, block_size)
    own, held_out = parts
    return Dataset(own, held_out, tokenizer, sha256, held_out.characters, tuple(notes))


def _tokenizer_of_conversations(kind: str) -> AnyTokenizer:
    if kind in ("char", "bpe"):
        raise ValueError(
            f"tokenizer={kind!r} is not allowed with conversations: it must be one that is not "
            "made of the text. Set --tokenizer byte or gpt2, or fine-tune a model, which has one: "
            "minigpt finetune RUN_DIR --data FILE."
        )
    return build_tokenizer(kind, "")


def load_dataset(
    data: Paths | None,
    kind: str,
    tokenizer: AnyTokenizer | None = None,
    *,
    val_data: Paths | None = None,
    text_field: str = "text",
    vocab_size: int | None = None,
) -> Dataset:
    """Tokenize a text, split as `load_text` does; the ids of a large one are memory-mapped.

    Uses `tokenizer`, or builds one of `kind`: char has the characters of both texts, bpe learns
    `vocab_size` tokens from the training text.

    Raises:
      ValueError: a file cannot be read, is not UTF-8, or changes while it is read; the ids of a
        large text cannot be written; or `tokenizer` does not know a character.
    """
    paths = () if data is None else as_paths(data)
    everything = (*paths, *(as_paths(val_data) if val_data is not None else ()))
    if folders := tuple(filter(is_token_folder, everything)):
        if not isinstance(tokenizer, SubwordTokenizer):
            tokenizer = token_id_tokenizer(kind, folders)
        return Dataset(*load_token_ids(paths, val_data, tokenizer))
    if tokenizer is None and kind not in ("char", "bpe"):
        tokenizer = build_tokenizer(kind, "")
    texts = open_text(data, val_data, text_field) if everything else None
    in_memory = texts is None or any(map(is_stream, everything))
    if texts is None or in_memory or texts.size <= MAX_IN_MEMORY_BYTES:
        corpus, has_own = read_corpus(texts) if texts else load_text(), val_data is not None
        tokenizer = tokenizer or _build_in_memory(corpus, kind, vocab_size)
        return _tokenize_in_memory(corpus, tokenizer, has_own_validation=has_own)
    name = ", ".join(map(str, everything))
    return _load_large(_Work(texts, name, kind, tokenizer, vocab_size, lambda _: None))


def _build_in_memory(text: Corpus, kind: str, vocab_size: int | None) -> AnyTokenizer:
    source = text.train if kind == "bpe" else text.train + text.validation
    return build_tokenizer(kind, source, vocab_size)


def _tokenize_in_memory(
    text: Corpus, tokenizer: AnyTokenizer, *, has_own_validation: bool
) -> Dataset:
    train = tokenizer.encode(text.train)
    offset = 0 if has_own_validation else len(text.train)
    validation = tokenizer.encode(text.validation, offset=offset)
    return Dataset(train, validation, tokenizer, text.sha256, len(text.validation))


def _load_large(work: _Work) -> Dataset:
    """Load from the cache; if it cannot be written, from an unnamed temporary file."""
    learns = work.kind == "bpe" and work.tokenizer is None
    size = (5 if learns else 3) * work.texts.size
    try:
        with _progress(size) as advance:
            return _load_cached(work._replace(advance=advance))
    except OSError as error:
        print(
            f"minigpt: cannot write the cache {str(cache_dir())!r} ({error.strerror}); the text is "
            "tokenized for this run only. Set MINIGPT_CACHE to another folder.",
            file=sys.stderr,
        )
    try:
        with _progress(size) as advance, tempfile.TemporaryFile() as file:
            work = work._replace(advance=advance)
            sha256 = work.texts.sha256(advance)
            if learns:
                work = work._replace(tokenizer=_learn(work, sha256))
            entry = _tokenize(work, sha256, file)
            file.flush()
            return _memory_map(file, entry, work.tokenizer, sha256)
    except OSError as error:
        raise ValueError(
            f"the ids of data={work.name!r} can be written neither to the cache "
            f"{str(cache_dir())!r} nor to a temporary file ({error.strerror}). Set "
            "MINIGPT_CACHE to a folder with room for two bytes per token (four if the tokenizer "
            "has more than 65,536)."
        ) from None


def _load_cached(work: _Work) -> Dataset:
    sha256 = work.texts.sha256(work.advance)
    if work.kind == "bpe" and work.tokenizer is None:
        size, learn = work.vocab_size or DEFAULT_VOCAB_SIZE, work
        text = cached_tokenizer(sha256, size, lambda: _learn(learn, sha256).tokenizer_json)
        work = work._replace(tokenizer=SubwordTokenizer(text))
    ids_path = cache_path(sha256, work.kind, work.tokenizer)
    entry = read_cache_entry(ids_path)
    entry = entry or build_cache_entry(ids_path, lambda file: _tokenize(work, sha256, file))
    return _memory_map(ids_path, entry, work.tokenizer, sha256)


def _learn(work: _Work, sha256: str) -> SubwordTokenizer:
    """Learn the tokens of the training text."""
    _, characters = _count_characters(work, sha256)
    halves = _read_halves(work, sha256, work.texts.validation_start(characters))
    return train_bpe((piece for half, piece in halves if half == 0), work.vocab_size)


def _tokenize(work: _Work, sha256: str, file: IO[bytes]) -> CacheEntry:
    """Read the text twice: count and collect its characters, then write its ids."""
    alphabet, characters = _count_characters(work, sha256)
    tokenizer = work.tokenizer or build_tokenizer(work.kind, alphabet)
    split = work.texts.validation_start(characters)
    crc, sizes = 0, [0, 0]  # sizes: tokens of the training, the validation text
    offsets = (0, split if work.texts.val_data is None else 0)
    halves = _read_halves(work, sha256, split)
    for half, group in itertools.groupby(halves, key=itemgetter(0)):
        pieces = (piece for _, piece in group)
        for ids in tokenizer.encode_pieces(pieces, offset=offsets[half]):
            data = ids.astype(_file_dtype(tokenizer)).tobytes()
            file.write(data)
            sizes[half] += len(ids)
            crc = zlib.crc32(data, crc)
    alphabet = tokenizer.alphabet if isinstance(tokenizer, Tokenizer) else None
    entry = CacheEntry(alphabet, sizes[0], sizes[1], sum(characters) - split, 0)
    return entry._replace(crc32=entry_crc32(crc, entry))


def _count_characters(work: _Work, sha256: str) -> tuple[str, list[int]]:
    """The distinct characters of both texts, and the number of characters of each."""
    occurs, characters = np.zeros(sys.maxunicode + 1, bool), [0, 0]
    for part, text in _read_unchanged(work, sha256):
        occurs[code_points(text)] = True
        characters[part] += len(text)
    return "".join(map(chr, np.flatnonzero(occurs))), characters


def _read_halves(work: _Work, sha256: str, split: int) -> Iterator[tuple[int, str]]:
    """Yield (0, piece of the training text) and then (1, piece of the validation text)."""
    left_to_train = split
    for _, text in _read_unchanged(work, sha256):
        for half, piece in enumerate((text[:left_to_train], text[left_to_train:])):
            if piece:
                yield half, piece
        left_to_train = max(0, left_to_train - len(text))


def _read_unchanged(work: _Work, sha256: str) -> Iterator[tuple[int, str]]:
    """Yield a text piece by piece; raise ValueError if its SHA-256 has changed."""
    digests: list[Any] = []
    yield from work.texts.read(digests, work.advance)
    if combine_digests(digests) != sha256:
        raise ValueError(f"data={work.name!r} changed while it was read. Run the command again.")


def _memory_map(
    file: Any, entry: CacheEntry, tokenizer: AnyTokenizer | None, sha256: str
) -> Dataset:
    """The ids of a file; None is the char tokenizer that the entry names."""
    tokenizer = tokenizer or Tokenizer(entry.alphabet)
    size = entry.train + entry.validation
    ids = np.memmap(file, _file_dtype(tokenizer), mode="r", shape=(size,))
    parts = ids[: entry.train], ids[entry.train :]
    return Dataset(*parts, tokenizer, sha256, entry.validation_characters)


def _file_dtype(tokenizer: AnyTokenizer) -> np.dtype[Any]:
    return np.dtype(tokenizer.dtype).newbyteorder("<")


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
