"""Texts of streams (a pipe, a FIFO, /dev/stdin): read once, and kept in the run directory.

A stream is read before the run directory is chosen, to a temporary file. The run directory gets a
copy of it before its config.toml, and its config.toml names the copies, RUN_DIR/stream-1.txt, ...
After that no command reads the stream.
"""

from __future__ import annotations

import contextlib
import dataclasses
import filecmp
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from minigpt.atomic_write import name_in_errors, open_atomic
from minigpt.config import Config
from minigpt.data import decode_utf8, is_stream, read_blocks
from minigpt.distributed import is_single_process

TEMPORARY_PREFIX = "minigpt-stream-"


def is_kept_name(name: str) -> bool:
    """Whether a file of a run directory is the text of a stream, or was to become one."""
    return re.fullmatch(r"stream-\d+\.txt(\.partial)?", name) is not None


@contextlib.contextmanager
def read_streams(
    config: Config, run_dir: Path | None, say: Callable[[str], object]
) -> Iterator[Config]:
    """Read each stream of the data once; yield settings that name files in their places.

    A run that keeps the texts already does not wait for the streams. The temporary files last as
    long as the `with` block; `save_streams` copies them to the run directory.
    """
    streams = [path for path in _paths(config) if is_stream(path)]
    if not streams:
        yield config
        return
    with contextlib.ExitStack() as stack:
        files = {}
        for number, stream in enumerate(streams, 1):
            name = f"stream-{number}.txt"
            if run_dir and _is_run(run_dir) and (run_dir / name).is_file():
                files[stream] = (run_dir / name).absolute()
                say(f"{stream} is not read: the run keeps its text, {run_dir / name}")
                continue
            _require_single_process(stream)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX))
            files[stream] = Path(folder) / name
            say(f"reading {stream} to its end; the run directory keeps the text, {name}")
            _read_stream(stream, files[stream])
        yield _replace_paths(config, lambda path: files.get(path, path))


def save_streams(config: Config, run_dir: Path) -> Config:
    """Copy the temporary files of streams to a run directory; return settings with the copies."""

    def save(path: Path) -> Path:
        if not path.parent.name.startswith(TEMPORARY_PREFIX):
            return path
        copy = run_dir.absolute() / path.name
        with path.open("rb") as source, open_atomic(copy) as file:
            shutil.copyfileobj(source, file)
        return copy

    return _replace_paths(config, save)


def find_kept_streams(config: Config, run_dir: Path) -> Config:
    """The settings of a run with its copies of streams where the run directory is now."""

    def find(path: Path) -> Path:
        copy = run_dir.absolute() / path.name
        return copy if is_kept_name(path.name) and copy.is_file() else path

    return _replace_paths(config, find)


def has_same_data(saved: Config, config: Config) -> bool:
    """Whether two settings name the same data; texts of streams are compared byte by byte."""

    def is_same(one: Path, other: Path) -> bool:
        both_kept = is_kept_name(one.name) and is_kept_name(other.name)
        return one == other or (both_kept and _has_same_bytes(one, other))

    return saved.text_field == config.text_field and all(
        (one is None) == (other is None)
        and len(one or ()) == len(other or ())
        and all(map(is_same, one or (), other or ()))
        for one, other in ((saved.data, config.data), (saved.val_data, config.val_data))
    )


def _has_same_bytes(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _paths(config: Config) -> tuple[Path, ...]:
    return (*(config.data or ()), *(config.val_data or ()))


def _replace_paths(config: Config, replace: Callable[[Path], Path]) -> Config:
    data, val_data = (
        None if paths is None else tuple(map(replace, paths))
        for paths in (config.data, config.val_data)
    )
    return dataclasses.replace(config, data=data, val_data=val_data)


def _is_run(run_dir: Path) -> bool:
    return (run_dir / "config.toml").is_file()


def _require_single_process(stream: Path) -> None:
    if not is_single_process():
        raise ValueError(
            f"data={str(stream)!r} is not allowed with several processes: all of them need the "
            "text. Save it to a file that all processes can read."
        )


def _read_stream(stream: Path, target: Path) -> None:
    """Write a stream's bytes to a file; text that cannot be decoded is an error at once."""

    def copy_blocks() -> Iterator[bytes]:
        for block in read_blocks(stream):
            file.write(block)
            yield block

    with name_in_errors(target), target.open("wb") as file:
        for _ in decode_utf8(copy_blocks(), stream):
            pass
