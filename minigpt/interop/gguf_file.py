"""Read metadata and arrays from a GGUF file that anyone may have made.

The format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. Arrays of quantized numbers are
converted by the `gguf` library of llama.cpp.
"""

from __future__ import annotations

import importlib
import math
import mmap
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

VERSIONS = (2, 3)
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", _BOOL: "u1"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
_FLOATS = {0: "F32", 1: "F16", 30: "BF16"}
_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(jnp.bfloat16)}
_MAX_AXES = 4


class GgufArray(NamedTuple):
    """An array in a file: where it is, its type and its shape, the slowest axis first."""

    path: Path
    dtype: str
    """F32, F16, BF16, Q8_0, Q4_K, ..."""
    shape: tuple[int, ...]
    first_byte: int
    bytes: int
    kind: int
    """the number of the type in the file"""

    def read_float32(self) -> np.ndarray:
        """Read it and convert it to float32."""
        with self.path.open("rb") as file:
            file.seek(self.first_byte)
            content = np.frombuffer(file.read(self.bytes), np.uint8)
        if self.dtype in _DTYPES:
            return content.view(_DTYPES[self.dtype]).reshape(self.shape).astype(np.float32)
        library = _load_library(self.path, self.dtype)
        kind = library.GGMLQuantizationType(self.kind)
        try:
            return library.dequantize(content.reshape(*self.shape[:-1], -1), kind)
        except NotImplementedError:
            raise ValueError(
                f"{str(self.path)!r}: arrays of the type {self.dtype} cannot be read by the gguf "
                "library. Convert the file to F16 or Q8_0 with llama.cpp."
            ) from None


class GgufFile(NamedTuple):
    """What a file has: its metadata by key, and its arrays by name."""

    metadata: dict[str, Any]
    arrays: dict[str, GgufArray]


def read_gguf(path: Path) -> GgufFile:
    """Read the metadata and the places of the arrays; the arrays themselves are read later.

    Raises:
      ValueError: the file is damaged, or has a type of numbers that the gguf library is missing
        for, or does not know.
    """
    try:
        if path.stat().st_size == 0:  # which mmap refuses
            raise _DamageError("it is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(path, _Header(data), len(data))
    except (_DamageError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not an undamaged GGUF file: {error}.") from None


class _DamageError(Exception):
    """The content is not that of a GGUF file."""


class _Header:
    """Reads one thing after the other; nothing beyond the end of the file."""

    def __init__(self, data: mmap.mmap):
        self._data, self.position = data, 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise _DamageError(f"it ends within {count:,} bytes from byte {self.position:,}")
        content = self._data[self.position : end]
        self.position = end
        return content

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        return self.take(self.integer(8)).decode()

    def value(self) -> Any:
        kind = self.integer(4)
        if kind != _ARRAY:
            return self._values(kind, 1)[0]
        kind, count = self.integer(4), self.integer(8)
        return self._values(kind, count)

    def _values(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            if self.position + 8 * count > len(self._data):
                raise _DamageError(f"it ends within {count:,} texts from byte {self.position:,}")
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise _DamageError(f"it has a value of the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self.take(count * dtype.itemsize), dtype)
        return (values != 0 if kind == _BOOL else values).tolist()


def _read(path: Path, header: _Header, size: int) -> GgufFile:
    if header.take(4) != b"GGUF":
        raise _DamageError("it does not begin with GGUF")
    if (version := header.integer(4)) not in VERSIONS:
        raise _DamageError(f"its version is {version}, and must be 2 or 3, little-endian")
    array_count, key_count = header.integer(8), header.integer(8)
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = header.text()
        if key in metadata:
            raise _DamageError(f"it has the key {key!r} twice")
        metadata[key] = header.value()
    entries = [_read_entry(header) for _ in range(array_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise _DamageError(f"general.alignment={alignment!r} is not a positive integer")
    start = -(-header.position // alignment) * alignment
    arrays: dict[str, GgufArray] = {}
    for name, kind, shape, offset in entries:
        if name in arrays:
            raise _DamageError(f"it has the array {name!r} twice")
        dtype, block, block_bytes = _find_type(path, name, kind)
        if not shape or math.prod(shape) == 0 or shape[-1] % block:
            raise _DamageError(f"the array {name!r} of {dtype} has the shape {shape}")
        count = math.prod(shape) // block * block_bytes
        arrays[name] = GgufArray(path, dtype, shape, start + offset, count, kind)
    _require_offsets(arrays, size)
    return GgufFile(metadata, arrays)


def _read_entry(header: _Header) -> tuple[str, int, tuple[int, ...], int]:
    """The name, the type, the shape and the offset of an array."""
    name, axes = header.text(), header.integer(4)
    if axes > _MAX_AXES:
        raise _DamageError(f"the array {name!r} has {axes} axes")
    shape = tuple(header.integer(8) for _ in range(axes))[::-1]
    return name, header.integer(4), shape, header.integer(8)


def _require_offsets(arrays: dict[str, GgufArray], size: int) -> None:
    """Every array must be in the file, and no two may overlap."""
    end = 0
    for name, array in sorted(arrays.items(), key=lambda item: item[1].first_byte):
        if array.first_byte < end:
            raise _DamageError(f"the array {name!r} overlaps with another one")
        end = array.first_byte + array.bytes
        if end > size:
            raise _DamageError(f"it has {size:,} bytes, and the array {name!r} ends at {end:,}")


def _find_type(path: Path, name: str, kind: int) -> tuple[str, int, int]:
    """The name of a type, the numbers of a block, and its bytes."""
    if kind in _FLOATS:
        return _FLOATS[kind], 1, _DTYPES[_FLOATS[kind]].itemsize
    library = _load_library(path, f"number {kind}")
    try:
        dtype = library.GGMLQuantizationType(kind)
    except ValueError:
        raise _DamageError(f"the array {name!r} has the unknown type {kind}") from None
    return dtype.name, *library.constants.GGML_QUANT_SIZES[dtype]


def _load_library(path: Path, dtype: str) -> Any:
    try:
        library: Any = importlib.import_module("gguf")
        importlib.import_module("gguf.quants")
    except ModuleNotFoundError:
        raise ValueError(
            f"{str(path)!r} has arrays of the type {dtype}, which need the gguf library, and it is "
            "not installed. Install it: pip install 'dropout-jax[gguf]'."
        ) from None
    return library
