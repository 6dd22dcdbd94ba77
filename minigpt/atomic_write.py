"""A file is replaced whole or stays as it was, and the error says which file it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file beside it, flush it to the disk and give it the name; leave none on failure."""
    partial = path.with_name(f"{path.name}.partial")
    with errors_name(path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Give an OSError the path: writing and flushing leave it out."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
