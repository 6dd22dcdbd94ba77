"""metrics.jsonl: one JSON object per line, with no gap, no repeated step and no partial line."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

from minigpt.atomic_write import name_in_errors, write_atomic

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """The records of a run up to a step, and those that are added later.

    A run that resumes from a checkpoint repeats the steps after it, so their records are removed.
    The remaining records must have the CRC-32 in the checkpoint; `warn` gets a message if the file
    is missing. With several processes, `writes` is true in one of them; all have the records.
    """

    def __init__(
        self,
        run_dir: Path,
        step: int,
        crc32: int | None = None,
        warn: Callable[[str], object] = print,
        *,
        writes: bool = True,
    ):
        self._path, self._writes = run_dir / METRICS_FILE, writes
        self._file: FileIO | None = None
        path, records = self._path, read_metrics(run_dir)
        self.records = [record for record in records if record["step"] <= step]
        content = b"".join(map(_serialize_record, self.records))
        self.crc32 = zlib.crc32(content)
        # Removed; a process that was killed before its next checkpoint may have created it again.
        was_removed = not path.exists() or (records and not self.records)
        if crc32 and was_removed:
            warn(f"{str(path)!r} is missing: there are no records up to step {step}")
        elif crc32 not in (None, self.crc32):
            raise ValueError(
                f"{str(path)!r} is damaged: its records up to step {step} are not those at the "
                "time of the checkpoint. Restore it from a copy, or remove it to resume without "
                "its records."
            )
        if writes and path.exists() and path.read_bytes() != content:
            write_atomic(path, content) if content else path.unlink()

    def add(self, record: dict[str, Any]) -> None:
        """Append a record; a reader never sees a part of its line."""
        line = _serialize_record(record)
        self.crc32 = zlib.crc32(line, self.crc32)
        if self._writes:
            self._append(line)
        self.records.append(record)

    def _append(self, line: bytes) -> None:
        if not self._path.exists():
            write_atomic(self._path, line)  # the file never exists without its first record
            return
        with name_in_errors(self._path):
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)  # a failed write is not repeated
            while line:  # a disk that is nearly full may accept a part only
                line = line[self._file.write(line) :]

    def sync(self) -> None:
        """Flush the records to disk."""
        with name_in_errors(self._path):
            if self._file:
                os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All complete records; a partial last line, after a kill or on a full disk, is ignored."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [_parse_record(path, number, line) for number, line in enumerate(lines, 1)]


def _parse_record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if isinstance(record["step"], int):
            return record
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(
        f"{str(path)!r} is damaged: its line {number} is not the record of a step. Restore it from "
        "a copy, or remove the file to resume without its records."
    )


def _serialize_record(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
