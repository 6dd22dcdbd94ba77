"""The texts in a column of a Parquet file or an Arrow file, as Hugging Face datasets keep them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from minigpt.data.sources import require_text

BATCH_ROWS = 1024


def read_column(path: Path, text_field: str) -> Iterator[str]:
    """Yield the texts of a column, row by row; a file of another form is a ValueError."""
    row = 0
    try:
        for batch in _read_batches(path, text_field):
            for value in batch.column(text_field).to_pylist():
                row += 1
                yield require_text(value, f"data={str(path)!r}, row {row}", text_field)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"data={str(path)!r} cannot be read: {reason}.") from None


def _read_batches(path: Path, text_field: str) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        if path.suffix == ".parquet":
            table = stack.enter_context(pyarrow.parquet.ParquetFile(path))
            _require_column(table.schema_arrow, path, text_field)
            yield from table.iter_batches(BATCH_ROWS, columns=[text_field])
            return
        file = stack.enter_context(pyarrow.memory_map(str(path)))
        if file.read(6) == b"ARROW1":
            table = stack.enter_context(pyarrow.ipc.open_file(file))
            _require_column(table.schema, path, text_field)
            yield from map(table.get_batch, range(table.num_record_batches))
            return
        file.seek(0)
        table = stack.enter_context(pyarrow.ipc.open_stream(file))
        _require_column(table.schema, path, text_field)
        yield from table


def _require_column(schema: Any, path: Path, text_field: str) -> None:
    if schema.names.count(text_field) != 1:
        raise ValueError(
            f"data={str(path)!r}: text_field={text_field!r} is not allowed: it must be one of the "
            f"columns, {schema.names}. Set --text-field."
        )
