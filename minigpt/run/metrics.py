"""metrics.jsonl: what was measured, a JSON object a line; no gap, no repeat and no torn line."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.atomic_write import name_in_errors, write_atomic

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """The records of a run up to a step, and those that are added.

    A run that goes on from a checkpoint measures the steps after it again, so they are cut off.
    The others must have the CRC-32 that the checkpoint names; `warn` is told if they are gone.
    Of many processes the first writes, and all have the records.
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
        self._path, self._writes, self._file = run_dir / METRICS_FILE, writes, None
        path, found = self._path, read_metrics(run_dir)
        self.records = [record for record in found if record["step"] <= step]
        whole = b"".join(map(_serialize_record, self.records))
        self.crc32 = zlib.crc32(whole)
        # Removed, and maybe begun anew by a process that was killed before its next checkpoint.
        removed = not path.exists() or (found and not self.records)
        if crc32 and removed:
            warn(f"{str(path)!r} is missing: the records begin anew after step {step}")
        elif crc32 not in (None, self.crc32):
            raise ValueError(
                f"{str(path)!r} is damaged: its records up to step {step} are not those that the "
                "checkpoint was saved with. Put a copy back, or remove it to go on without them."
            )
        if writes and path.exists() and path.read_bytes() != whole:
            write_atomic(path, whole) if whole else path.unlink()

    def add(self, record: dict[str, Any]) -> None:
        """Append a record; a reader sees all of its line."""
        line = _serialize_record(record)
        self.crc32 = zlib.crc32(line, self.crc32)
        if self._writes:
            self._append(line)
        self.records.append(record)

    def _append(self, line: bytes) -> None:
        if not self._path.exists():
            write_atomic(self._path, line)  # the file is never there without its first record
            return
        with name_in_errors(self._path):
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)  # a failed write is not tried again
            while line:  # a disk that is nearly full takes some of it
                line = line[self._file.write(line) :]

    def sync(self) -> None:
        """Return when the records are on disk."""
        with name_in_errors(self._path):
            if self._file:
                os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Every whole record; what a killed or full disk left of the last line is not one."""
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
        f"{str(path)!r} is damaged: its line {number} is not the record of a step. Put a copy "
        "back, or remove the file to go on without its records."
    )


def _serialize_record(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
