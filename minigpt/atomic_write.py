"""Write files and folders completely or not at all; errors name the file."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def open_atomic(path: Path, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """Write to a temporary file; rename it to `path` on success, delete it on error.

    The temporary file is named `path.partial`. In a `shared` folder, where two processes may write
    the same file at once, the name gets a random part, so that each process has its own.
    """
    unique = f".{secrets.token_hex(4)}" if shared else ""
    partial = path.with_name(f"{path.name}{unique}.partial")
    with name_in_errors(path):
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the content of a file; on error the old content stays."""
    with open_atomic(path) as file:
        file.write(content)


def write_dir_atomic(path: Path, files: Mapping[str, bytes]) -> None:
    """Write files to a hidden folder, in the given order; flush it to disk, then rename it."""
    partial = path.with_name(f".{path.name}.partial")
    with name_in_errors(partial):
        partial.mkdir()
    try:
        for name, content in files.items():
            with name_in_errors(partial / name), (partial / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        fsync_dir(partial)
        with name_in_errors(path):
            partial.rename(path)
        fsync_dir(path.parent)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def fsync_dir(folder: Path) -> None:
    """Flush a folder, and so the names of its files, to disk."""
    with name_in_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_writable(name: str, path: Path) -> None:
    """Raise ValueError if a file cannot be written to `path`, before there is anything to write."""
    folder = path.parent
    if path.is_dir():
        allowed, remedy = "a file", f"Set --{name} {path / 'FILE'}."
    elif not folder.is_dir():
        allowed, remedy = "in an existing folder", f"Create it: mkdir -p {folder}."
    elif not os.access(folder, os.W_OK):
        allowed, remedy = "in a folder that may be written to", f"Choose another --{name}."
    else:
        return
    raise ValueError(f"{name}={str(path)!r} is not allowed: it must be {allowed}. {remedy}")


@contextlib.contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Add the path to an OSError: those of writing and flushing lack it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
