"""A checkpoint's folder: what it holds, and the verification of all that is read of it.

`RUN_DIR/checkpoints/00001000/` holds `arrays.safetensors` and, written last, `manifest.json`: the
step, every array's shape and dtype, the size and SHA-256 of the other file, the caller's `meta`,
and the SHA-256 of all that. Whatever a disk, a copy or a stranger did to it is an error that names
the file.

The arrays are in safetensors because reading it runs nothing: a length, a JSON header, raw bytes.
Its reader is small, refuses gaps and overlaps, knows bfloat16, and other frameworks open the file.
NumPy's .npz can hold pickles and lacks bfloat16; Orbax brings a storage stack of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

ARRAYS, MANIFEST = "arrays.safetensors", "manifest.json"
FORMAT = 1
# dtypes by their names in safetensors.
DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
}
# Caps that hold whatever a file says of itself: a manifest or a header is about 100 bytes an array.
MAX_MANIFEST = MAX_HEADER = 2**24
MAX_BYTES = 2**34

# A step saved a second time is 00001000-2, so that the first is whole until the second is.
_COMMITTED = re.compile(r"([0-9]{8,})(?:-([0-9]+))?")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why."""


class CheckpointDir(NamedTuple):
    """A committed checkpoint, ordered as they were written."""

    step: int
    generation: int
    path: Path


def list_checkpoints(root: Path) -> list[CheckpointDir]:
    """Whole checkpoints in the order of their steps; of the same step, as they were written."""
    refuse_link(root)
    if not root.exists():
        return []
    found = [(path, _COMMITTED.fullmatch(path.name)) for path in root.iterdir()]
    return sorted(CheckpointDir(int(m[1]), int(m[2] or 1), path) for path, m in found if m)


def read_manifest(folder: CheckpointDir) -> dict[str, Any]:
    """A checkpoint's manifest: whole, of this format, of this folder, and naming nothing else."""
    path = folder.path / MANIFEST
    refuse_link(folder.path)
    _check_names(folder.path)
    data = _content(path, MAX_MANIFEST)
    try:
        manifest = json.loads(data.decode("ascii"))
        whole = manifest.pop("sha256") and serialize_manifest(manifest) == data
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        whole = False
    _require(whole, path, "is damaged: it is not what its own checksum is of")
    _require(
        manifest.get("format") == FORMAT,
        path,
        f"is of format {manifest.get('format')!r}, and this version reads {FORMAT}. "
        "Use the version of minigpt that wrote it",
    )
    _check_fields(path, manifest, folder.step)
    return manifest


def serialize_manifest(manifest: dict[str, Any]) -> bytes:
    """The only bytes that stand for a manifest, with the checksum of the rest among them.

    Reading compares all of them, so a flipped bit that JSON would not mind is noticed too.
    """
    rest = json.dumps(manifest, sort_keys=True).encode()
    sealed = manifest | {"sha256": hashlib.sha256(rest).hexdigest()}
    return json.dumps(sealed, sort_keys=True, indent=1).encode()


def _check_names(folder: Path) -> None:
    """Nothing is missing and nothing was added."""
    try:
        found = set(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{str(folder)!r} cannot be read: {error.strerror}.") from None
    for name in sorted({ARRAYS, MANIFEST} - found):
        raise CheckpointError(f"{str(folder / name)!r} is missing.")
    for name in sorted(found - {ARRAYS, MANIFEST}):
        raise CheckpointError(
            f"{str(folder / name)!r} is not allowed: a checkpoint holds {ARRAYS} and {MANIFEST} "
            "only. Remove it, if you know what it is."
        )


def _check_fields(path: Path, manifest: dict[str, Any], step: int) -> None:
    """Every field is there, and of the type that is counted on from here on."""
    fields = {"format", "step", "files", "arrays", "meta"}
    _require(set(manifest) == fields, path, f"must hold {', '.join(sorted(fields))} and no more")
    _require(manifest["step"] == step, path, f"is of step {manifest['step']!r}")
    files, arrays = manifest["files"], manifest["arrays"]
    _require(isinstance(files, dict), path, "must name its files")
    for name in files:
        # This refuses separators, absolute names and `..` as well.
        _require(name == ARRAYS, path, f"names the file {name!r}, and may name {ARRAYS} only")
    _require(ARRAYS in files, path, f"lacks {ARRAYS}")
    file = files[ARRAYS]
    good = isinstance(file, dict) and set(file) == {"bytes", "sha256"} and _is_size(file["bytes"])
    _require(good, path, f"must give the size and SHA-256 of {ARRAYS}")
    _require(isinstance(manifest["meta"], dict), path, "must hold a table as its meta")
    _require(isinstance(arrays, dict), path, "must hold a table of arrays")
    for name, spec in arrays.items():
        good = (
            isinstance(spec, dict)
            and set(spec) == {"shape", "dtype"}
            and spec["dtype"] in DTYPES.values()
            and isinstance(spec["shape"], list)
            and all(map(_is_size, spec["shape"]))
            and len(spec["shape"]) <= 64
        )
        _require(good, path, f"gives the array {name!r} the shape and dtype {spec}")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def array_spec(name: str, array: np.ndarray) -> dict[str, Any]:
    """An array's shape and dtype, as a manifest has them; a dtype that files lack is an error."""
    dtype = array.dtype.name
    if dtype not in DTYPES.values() or name == "__metadata__":
        raise ValueError(
            f"the array {name!r} of dtype {dtype} is not allowed in a checkpoint: the dtype must "
            f"be one of {', '.join(DTYPES.values())}, and the name not '__metadata__'."
        )
    return {"shape": list(array.shape), "dtype": dtype}


def total_bytes(manifest: dict[str, Any]) -> int:
    """The size of all arrays."""
    specs = manifest["arrays"].values()
    return sum(math.prod(spec["shape"]) * np.dtype(spec["dtype"]).itemsize for spec in specs)


def read_arrays(
    folder: CheckpointDir, manifest: dict[str, Any], max_bytes: int
) -> dict[str, np.ndarray]:
    """Read the file of arrays once, so that the bytes that are hashed are those that are used."""
    path, file, total = folder.path / ARRAYS, manifest["files"][ARRAYS], total_bytes(manifest)
    _require(
        total <= max_bytes,
        path,
        f"holds {total:,} bytes of arrays, and max_bytes={max_bytes:,}. Is it that large? "
        "Give read() a larger max_bytes",
    )
    header = file["bytes"] - 8 - total
    agree = f"is of {file['bytes']:,} bytes by its manifest, and its arrays need {total:,}"
    _require(0 < header <= MAX_HEADER, path, agree)
    data = _content(path, file["bytes"])
    _require(len(data) == file["bytes"], path, f"is cut short to {len(data):,} bytes")
    _require(
        hashlib.sha256(data).hexdigest() == file["sha256"],
        path,
        f"is damaged: its SHA-256 is not the one in {MANIFEST}",
    )
    _require(int.from_bytes(data[:8], "little") == header, path, agree)
    try:
        arrays = {name: _array(entry) for name, entry in safetensors.deserialize(data)}
    except (safetensors.SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}.") from None
    found = {name: array_spec(name, array) for name, array in arrays.items()}
    _require(found == manifest["arrays"], path, f"holds other arrays than {MANIFEST} says")
    return arrays


def _array(entry: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _content(path: Path, limit: int) -> bytes:
    """The bytes of a regular file no larger than `limit`."""
    try:
        refuse_link(path)
        status = path.stat()
        _require(stat.S_ISREG(status.st_mode), path, "is not a file")
        size = status.st_size
        _require(size <= limit, path, f"is of {size:,} bytes, and may be of {limit:,} at most")
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}.") from None


def refuse_link(path: Path) -> None:
    """A symbolic link is an error."""
    _require(
        not path.is_symlink(), path, "is a symbolic link, which a checkpoint may not hold. Copy it"
    )


def _require(holds: bool, path: Path, why: str) -> None:
    if not holds:
        raise CheckpointError(f"{str(path)!r} {why}.")
