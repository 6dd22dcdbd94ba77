"""metrics.jsonl: what was measured, a JSON object a line; no gap, no repeat and no torn line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TextIO

FILE = "metrics.jsonl"


class Metrics:
    """The records of a run up to a step, and those that are added.

    A run that goes on from a checkpoint measures the steps after it again, so they are cut off.
    Of many processes the first writes, and all have the records.
    """

    def __init__(self, run_dir: Path, step: int, *, writes: bool = True):
        self._path = run_dir / FILE
        self.records = [record for record in read(run_dir) if record["step"] <= step]
        self._file = self._opened() if writes else None

    def _opened(self) -> TextIO:
        whole = "".join(_line(record) for record in self.records)
        if not self._path.exists() or self._path.read_text(encoding="utf-8") != whole:
            partial = self._path.with_suffix(".partial")
            partial.write_text(whole, encoding="utf-8")
            partial.replace(self._path)
        return self._path.open("a", encoding="utf-8")

    def add(self, record: dict[str, Any]) -> None:
        """Append a record; a reader sees all of its line."""
        if self._file is not None:
            self._file.write(_line(record))
            self._file.flush()
        self.records.append(record)

    def sync(self) -> None:
        """Return when the records are on disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def read(run_dir: Path) -> list[dict[str, Any]]:
    """Every whole record; what a killed or full disk left of the last line is not one."""
    path = run_dir / FILE
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}.") from None


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"
