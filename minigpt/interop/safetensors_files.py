"""Read arrays from safetensors files that anyone may have made, in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from minigpt.interop.config_json import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_INDEX_BYTES = 1 << 24
FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(jnp.bfloat16)}


class StoredArray(NamedTuple):
    """An array in a file: where it is, its type and its shape."""

    path: Path
    dtype: str
    """as in safetensors: F32, BF16, ..."""
    shape: tuple[int, ...]
    first_byte: int

    def read_float32(self) -> np.ndarray:
        """Read it and convert it to float32; a dtype that is not in FLOATS is a KeyError."""
        dtype, count = FLOATS[self.dtype], int(np.prod(self.shape, dtype=np.int64))
        with self.path.open("rb") as file:
            file.seek(self.first_byte)
            content = file.read(count * dtype.itemsize)
        return np.frombuffer(content, dtype).reshape(self.shape).astype(np.float32)


def require_shape(name: str, array: Any, shape: tuple[int, ...], source: str) -> None:
    """Refuse an array of another shape than the settings in `source` ask for."""
    if array.shape != shape:
        raise ValueError(
            f"{str(array.path)!r}: the array {name!r} has the shape {array.shape}, and {source} "
            f"asks for {shape}."
        )


def require_float(name: str, array: StoredArray) -> None:
    """Refuse an array of a dtype that is not of floating-point numbers."""
    if array.dtype not in FLOATS:
        raise ValueError(
            f"{str(array.path)!r}: the array {name!r} is {array.dtype}, and must be "
            f"{', '.join(FLOATS)}."
        )


def read_finite(name: str, array: Any) -> np.ndarray:
    """Read an array such as a StoredArray to float32; NaN and infinite numbers are refused."""
    content = array.read_float32()
    if not np.isfinite(content).all():
        raise ValueError(
            f"{str(array.path)!r}: the array {name!r} has NaN or infinite numbers: it is damaged."
        )
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a folder: model.safetensors, or the shards of its index.

    Raises:
      ValueError: there are none, or the index names a file that is not in the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return sorted(set(_read_index(folder).values()))
    raise ValueError(f"{str(folder)!r} has neither {WEIGHTS} nor {INDEX}.")


def list_arrays(folder: Path) -> dict[str, StoredArray]:
    """The arrays of a folder by name; with an index, each must be in the file that it names."""
    arrays = {}
    for path in weight_files(folder):
        for name, array in _read_header(path):
            if name in arrays:
                raise ValueError(f"{str(path)!r}: {name!r} is also in {str(arrays[name].path)!r}.")
            arrays[name] = array
    if not (folder / WEIGHTS).is_file():
        for name, path in _read_index(folder).items():
            if name not in arrays or arrays[name].path != path:
                raise ValueError(f"{str(path)!r} lacks {name!r}, which {INDEX} places there.")
    return arrays


def _read_index(folder: Path) -> dict[str, Path]:
    """The file of each array."""
    path = folder / INDEX
    files = read_json(path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{str(path)!r}: weight_map must be an object with the file of each array")
    for name in files.values():
        is_name = isinstance(name, str) and not set(name) & set("/\\:\0") and name[:1] != "."
        if not is_name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{str(path)!r}: the file {name!r:.200} is not allowed: it must be a file of the "
                "same folder, with a name that ends in .safetensors."
            )
        if not (folder / name).is_file():
            raise ValueError(f"{str(path)!r}: the file {str(folder / name)!r} is missing.")
    return {name: folder / file for name, file in files.items()}


def _read_header(path: Path) -> Iterator[tuple[str, StoredArray]]:
    """Check a file and list its arrays; the library checks lengths, offsets and gaps."""
    try:
        with safetensors.safe_open(path, "np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not an undamaged safetensors file: {error}.") from None
    for name, entry in header.items():
        if name != "__metadata__":
            first_byte = 8 + length + entry["data_offsets"][0]
            yield name, StoredArray(path, entry["dtype"], tuple(entry["shape"]), first_byte)
