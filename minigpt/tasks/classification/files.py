"""Files of texts: CSV with commas, tabs or semicolons, JSON lines, or one text a line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minigpt.data import read_text

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons"}


class Row(NamedTuple):
    """A row of a file."""

    location: str
    """file and line, for messages"""
    cells: dict[str, str]
    """by column; all but the text without spaces around them"""


def read_rows(data: Path, columns: Sequence[str]) -> list[Row]:
    """Read a UTF-8 file: JSON lines by the suffix .jsonl, else CSV with a first line of names.

    Each row must have the `columns`. The cells of a CSV file may be separated by commas, tabs or
    semicolons: by those whose header has the columns.
    """
    content = read_text(data, "data")
    parse = _parse_json_lines if data.suffix == ".jsonl" else _parse_csv
    return [
        Row(location, {name: v if name == "text" else v.strip() for name, v in cells.items()})
        for location, cells in parse(content, data, columns)
    ]


def read_texts(data: Path) -> list[str]:
    """The texts of a .csv, .tsv or .jsonl file, of the column text; of others, - too, each line."""
    if data.suffix in (".csv", ".tsv", ".jsonl"):
        return [row.cells["text"] for row in read_rows(data, ["text"])]
    lines = read_text(data, "predict").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ValueError(
                f"predict={str(data)!r}, line {number}: it is empty, and each line must be a text. "
                "Remove it."
            )
    return lines


def _parse_json_lines(
    content: str, data: Path, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    for number, line in enumerate(content.split("\n"), 1):
        location = f"data={str(data)!r}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{location}: this is not JSON ({error}).") from None
        if not isinstance(row, dict) or any(row.get(name) is None for name in columns):
            raise ValueError(
                f"{location}: it must be an object with the fields {', '.join(columns)}, such as "
                f"{json.dumps(dict.fromkeys(columns, '...'))}."
            )
        yield location, {name: _to_text(row[name]) for name in (*columns, "split") if name in row}


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _parse_csv(
    content: str, data: Path, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    delimiter = _find_delimiter(content, data, columns)
    reader = csv.DictReader(io.StringIO(content), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(len(content) + 1)  # a cell may be as long as the file
    try:
        for row in reader:
            location = f"data={str(data)!r}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(
                    f"{location}: there must be one cell per column, separated by "
                    f'{DELIMITERS[delimiter]}. Put texts in "quotation marks".'
                )
            yield location, row
    except csv.Error as error:
        location = f"data={str(data)!r}, after line {reader.line_num}"
        raise ValueError(f"{location}: this is not valid CSV ({error}).") from None
    finally:
        csv.field_size_limit(limit)


def _find_delimiter(content: str, data: Path, columns: Sequence[str]) -> str:
    """The delimiter with which the first line has the columns; raise ValueError if none has."""
    first_line = content.split("\n", 1)[0].removesuffix("\r")
    for delimiter in DELIMITERS:
        header = next(csv.reader([first_line], delimiter=delimiter), [])
        if repeated := [name for name in (*columns, "split") if header.count(name) > 1]:
            raise ValueError(
                f"data={str(data)!r} is not allowed: it has the column {repeated[0]!r} more than "
                f"once. Its first line names the columns {header}."
            )
        if all(name in header for name in columns):
            return delimiter
    missing = next((name for name in columns if name not in first_line), columns[0])
    raise ValueError(
        f"data={str(data)!r} is not allowed: it lacks the column {missing!r}. Its first line must "
        f"name the columns {' and '.join(columns)}, separated by commas, tabs or semicolons, but "
        f"is {first_line[:80]!r}."
    )
