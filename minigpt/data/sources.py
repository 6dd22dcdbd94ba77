"""The sources of a text: files of several formats, folders and plays, each read as UTF-8 blocks."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from minigpt.data.decode import BLOCK_BYTES, decode_utf8, read_blocks, read_text
from minigpt.data.formats import SAMPLE_BYTES, recognize_format
from minigpt.data.shakespeare import is_play, read_play

# Between two documents: the files of a text, and the records of a file. Every tokenizer has it.
DOCUMENT_SEPARATOR = "\n\n"
TABLES = (".parquet", ".arrow")
PLAIN_TABLES = (".json", ".csv", ".tsv")
GZIP_RATIO = 4  # a text is about this many times as large as its .gz file; for progress bars
# A folder with one of these files is the directory of a run, which is no text to train on.
RUN_FILES = frozenset({".lock", "tokenizer.json"})


class Source(NamedTuple):
    """A text that can be read again and again."""

    path: Path
    read: Callable[[], Iterator[bytes]]
    """yields the text, block by block"""
    size: int
    """about the number of bytes"""
    is_extracted: bool = False
    """whether the blocks are taken out of records, and so are no file's first bytes"""

    def decode(self, blocks: Iterator[bytes]) -> Iterator[str]:
        """Decode the blocks that `read` yields."""
        return decode_utf8(blocks, self.path, recognize=not self.is_extracted)


def find_sources(data: tuple[Path, ...], text_field: str) -> tuple[Source, ...]:
    """The sources of a text, in the order of `data`; the files of a folder are sorted by path.

    Raises:
      ValueError: a file or folder is missing, a folder has no text, or pyarrow is needed and not
        installed.
    """
    return tuple(source for path in data for source in _sources_of(path, text_field))


def is_stream(path: Path) -> bool:
    """Whether a path can be read only once: a pipe, a FIFO, a terminal, /dev/stdin, or -."""
    if re.fullmatch(r"-|/dev/(stdin|fd/\d+)|/proc/(self|\d+)/fd/\d+", str(path)):
        return True
    try:
        return path.exists() and not path.is_file() and not path.is_dir()
    except OSError:
        return False


def _sources_of(path: Path, text_field: str) -> list[Source]:
    if is_play(path):
        raw = read_play(path)
        return [Source(path, lambda: iter([raw]), len(raw))]
    if not path.is_dir():
        return [_open_file(path, text_field)]
    files = _arrow_files(path) or _text_files(path)
    return [_open_file(file, text_field) for file in files]


def _open_file(path: Path, text_field: str) -> Source:
    """The source of a file; the end of its name tells the format."""
    size = path.stat().st_size if path.is_file() else 0
    if path.suffix == ".gz":
        size *= GZIP_RATIO
    if path.suffix in TABLES:
        _require_pyarrow(path)
        from minigpt.data.tables import read_column

        return Source(path, lambda: _join(read_column(path, text_field)), size, True)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return Source(path, lambda: _join(_read_json_lines(path, text_field)), size, True)
    if path.suffix in PLAIN_TABLES:
        print(
            f"minigpt: {str(path)!r} is read as plain text, with its punctuation; for the texts of "
            "records alone, save them as JSON lines (.jsonl)",
            file=sys.stderr,
        )
    return Source(path, lambda: read_file(path), size)


def read_file(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed if its name ends in .gz."""
    return _read_gzip(path) if path.suffix == ".gz" else read_blocks(path)


def _read_gzip(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or f"it is not a whole gzip file ({error})"
        raise ValueError(f"data={str(path)!r} cannot be read: {reason}.") from None


def _join(documents: Iterator[str]) -> Iterator[bytes]:
    """The documents in UTF-8, with separators between them."""
    for number, document in enumerate(documents):
        yield ((DOCUMENT_SEPARATOR if number else "") + document).encode()


def _read_json_lines(path: Path, text_field: str) -> Iterator[str]:
    """The text of each line's object; blank lines are skipped."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        location = f"data={str(path)!r}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{location}: this is not valid JSON ({error}).") from None
        if not isinstance(record, dict) or text_field not in record:
            fields = sorted(record) if isinstance(record, dict) else "none: it is no object"
            raise ValueError(
                f"{location}: text_field={text_field!r} is not allowed: it must be one of the "
                f"line's fields, {fields}. Set --text-field. (Conversations, for instruction "
                "tuning, have messages, or a prompt and a completion, and are named file by file.)"
            )
        yield require_text(record[text_field], location, text_field)


def require_text(value: object, location: str, text_field: str) -> str:
    """The text of a record; a value that is not text is a ValueError."""
    if not isinstance(value, str):
        raise ValueError(
            f"{location}: text_field={text_field!r} is not allowed: it must be a field with text, "
            f"and here it is {value!r:.80}. Set --text-field, or remove the record."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        surrogate = value[error.start]
        raise ValueError(
            f"{location}: {surrogate!r} is not allowed: it is half of a character. Remove it."
        ) from None
    return value


def read_lines(path: Path, blocks: Iterator[bytes] | None = None) -> Iterator[str]:
    """Yield the lines of a file, whose bytes may be given as `blocks`."""
    rest = ""
    for text in decode_utf8(read_file(path) if blocks is None else blocks, path):
        *lines, rest = (rest + text).split("\n")
        yield from lines
    yield rest


def _arrow_files(folder: Path) -> list[Path]:
    """The files of a Hugging Face dataset as save_to_disk writes it; none if it is not one."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/dataset_info.json"))
        raise ValueError(
            f"data={str(folder)!r} is not allowed: it must be one split of this Hugging Face "
            f"dataset, whose splits are {', '.join(splits)}. Name one for training, as in --data "
            f"{folder / (splits or ['train'])[0]}, and another with --val-data."
        )
    if not (folder / "state.json").is_file() or not (folder / "dataset_info.json").is_file():
        return []
    # It names the files: the folder may have others, which `datasets` writes to cache results.
    state = read_text(folder / "state.json", "data")
    try:
        return [folder / file["filename"] for file in json.loads(state)["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"data={str(folder)!r} is damaged: its state.json names no data files ({error!r}). "
            "Save the dataset again with save_to_disk."
        ) from None


def _text_files(folder: Path) -> list[Path]:
    """The files with text below a folder, sorted by path.

    Files whose names start with a dot and directories of runs are left out; files that are not text
    are left out with a line on standard error.
    """
    files, others = [], []
    for path in sorted(_walk(folder), key=lambda path: path.relative_to(folder).as_posix()):
        (others if _is_other_format(path) else files).append(path)
    if not files:
        raise ValueError(
            f"data={str(folder)!r} is not allowed: it must be a file with text, or a folder with "
            f"such files, and it has none of {len(others)} files. Name another --data."
        )
    if others:
        names = ", ".join(str(path.relative_to(folder)) for path in others[:3])
        more = f", ... ({len(others)} files)" if len(others) > 3 else ""
        message = f"minigpt: {str(folder)!r} without what is not text: {names}{more}"
        print(message.encode(errors="backslashreplace").decode(), file=sys.stderr)
    return files


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        reason = f"{error.filename}: {error.strerror}"
        raise ValueError(f"data={str(folder)!r} cannot be read: {reason}.") from None

    for parent, folders, names in os.walk(folder, onerror=refuse):
        if RUN_FILES.intersection(names) and Path(parent) != folder:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _is_other_format(path: Path) -> bool:
    """Whether a file's first bytes are those of something that is not text.

    Text in another encoding is text: it is refused with the way to convert it, not left out.
    """
    if path.suffix in TABLES or path.suffix == ".gz":
        return False
    sample = next(read_blocks(path), b"")[:SAMPLE_BYTES]
    other_format = recognize_format(sample, path.suffix)
    return other_format is not None and not other_format.is_text


def _require_pyarrow(path: Path) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"data={str(path)!r} cannot be read without pyarrow: pip install 'dropout-jax[parquet]'"
        )
