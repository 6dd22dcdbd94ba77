"""The folder of a checkpoint: its content, and the verification of everything that is read.

`RUN_DIR/checkpoints/00001000/` holds `arrays.safetensors` and, written last, `manifest.json`: the
step, the shape and dtype of every array, the size and SHA-256 of the other file, the caller's
`meta`, and the SHA-256 of all of these. Any damage or change is an error that names the file.

The arrays are in the safetensors format, because reading it executes no code: a length, a JSON
header, raw bytes. Its reader is small, refuses gaps and overlaps and knows bfloat16, and other
frameworks can open the file. NumPy's .npz can contain pickles and lacks bfloat16; Orbax needs a
storage stack of its own.
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
# NumPy's name of each dtype, by the name in safetensors.
DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
}
# Size limits that no file can change; a manifest or a header needs about 100 bytes per array.
MAX_MANIFEST = MAX_HEADER = 2**24
MAX_BYTES = 2**34

# A second save of the same step is named 00001000-2: the first one stays until the commit.
_COMMITTED = re.compile(r"([0-9]{8,})(?:-([0-9]+))?")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says why."""


class CheckpointDir(NamedTuple):
    """The folder of a committed checkpoint; sorting gives the order of steps, then of saves."""

    step: int
    generation: int
    path: Path


def list_checkpoints(root: Path) -> list[CheckpointDir]:
    """The committed checkpoints in the order of their steps; those of one step, of their saves."""
    refuse_link(root)
    if not root.exists():
        return []
    matches = [(path, _COMMITTED.fullmatch(path.name)) for path in root.iterdir()]
    return sorted(CheckpointDir(int(m[1]), int(m[2] or 1), path) for path, m in matches if m)


def read_manifest(folder: CheckpointDir) -> dict[str, Any]:
    """Read a manifest; it must be undamaged, of this format and of this folder's step."""
    path = folder.path / MANIFEST
    refuse_link(folder.path)
    _check_file_names(folder.path)
    content = _read_file(path, MAX_MANIFEST)
    manifest = _parse_manifest(content)
    if manifest is None:
        raise CheckpointError(f"{str(path)!r} is damaged: its checksum does not match its content.")
    _require(
        manifest.get("format") == FORMAT,
        path,
        f"has format {manifest.get('format')!r}, but this version reads format {FORMAT}. "
        "Use the version of minigpt that wrote it",
    )
    _check_fields(path, manifest, folder.step)
    return manifest


def _parse_manifest(content: bytes) -> dict[str, Any] | None:
    """Parse a manifest; None unless `serialize_manifest` gives exactly these bytes."""
    try:
        manifest = json.loads(content.decode("ascii"))
        is_intact = manifest.pop("sha256") and serialize_manifest(manifest) == content
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    return manifest if is_intact else None


def serialize_manifest(manifest: dict[str, Any]) -> bytes:
    """A manifest and the SHA-256 of its content, as JSON.

    Every manifest has exactly one serialization, and reading compares all bytes. So a flipped bit
    that leaves valid JSON is detected too.
    """
    content = json.dumps(manifest, sort_keys=True).encode()
    with_checksum = manifest | {"sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(with_checksum, sort_keys=True, indent=1).encode()


def _check_file_names(folder: Path) -> None:
    """Raise CheckpointError if a file is missing or does not belong to a checkpoint."""
    try:
        names = set(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{str(folder)!r} cannot be read: {error.strerror}.") from None
    for name in sorted({ARRAYS, MANIFEST} - names):
        raise CheckpointError(f"{str(folder / name)!r} is missing.")
    for name in sorted(names - {ARRAYS, MANIFEST}):
        raise CheckpointError(
            f"{str(folder / name)!r} is not allowed: a checkpoint consists of {ARRAYS} and "
            f"{MANIFEST} only. Move the file away if you know what it is."
        )


def _check_fields(path: Path, manifest: dict[str, Any], step: int) -> None:
    """Raise CheckpointError unless every field is present and has the right type."""
    fields = {"format", "step", "files", "arrays", "meta"}
    _require(set(manifest) == fields, path, f"must have the fields {', '.join(sorted(fields))}")
    _require(manifest["step"] == step, path, f"is of step {manifest['step']!r}, not {step}")
    files, arrays = manifest["files"], manifest["arrays"]
    _require(isinstance(files, dict), path, "must have a table as its field files")
    for name in files:
        # This also refuses separators, absolute paths and `..`.
        _require(name == ARRAYS, path, f"names the file {name!r}; only {ARRAYS} is allowed")
    _require(ARRAYS in files, path, f"does not name the file {ARRAYS}")
    file = files[ARRAYS]
    is_valid = (
        isinstance(file, dict) and set(file) == {"bytes", "sha256"} and _is_size(file["bytes"])
    )
    _require(is_valid, path, f"must give the size and SHA-256 of {ARRAYS}")
    _require(isinstance(manifest["meta"], dict), path, "must have a table as its field meta")
    _require(isinstance(arrays, dict), path, "must have a table as its field arrays")
    for name, spec in arrays.items():
        is_valid = (
            isinstance(spec, dict)
            and set(spec) == {"shape", "dtype"}
            and spec["dtype"] in DTYPES.values()
            and isinstance(spec["shape"], list)
            and all(map(_is_size, spec["shape"]))
            and len(spec["shape"]) <= 64
        )
        _require(is_valid, path, f"gives the array {name!r} the invalid shape or dtype {spec}")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def array_spec(name: str, array: np.ndarray) -> dict[str, Any]:
    """An array's shape and dtype as in a manifest; an unsupported dtype is a ValueError."""
    dtype = array.dtype.name
    if dtype not in DTYPES.values() or name == "__metadata__":
        raise ValueError(
            f"the array {name!r} of dtype {dtype} is not allowed in a checkpoint: the dtype must "
            f"be one of {', '.join(DTYPES.values())}, and the name must not be '__metadata__'."
        )
    return {"shape": list(array.shape), "dtype": dtype}


def total_bytes(manifest: dict[str, Any]) -> int:
    """The total size of the arrays in bytes."""
    specs = manifest["arrays"].values()
    return sum(math.prod(spec["shape"]) * np.dtype(spec["dtype"]).itemsize for spec in specs)


def read_arrays(
    folder: CheckpointDir, manifest: dict[str, Any], max_bytes: int
) -> dict[str, np.ndarray]:
    """Read and verify the arrays; the file is read once, so that the verified bytes are used."""
    path, file, total = folder.path / ARRAYS, manifest["files"][ARRAYS], total_bytes(manifest)
    _require(
        total <= max_bytes,
        path,
        f"has {total:,} bytes of arrays, more than max_bytes={max_bytes:,}. If it really is that "
        "large, call read() with a larger max_bytes",
    )
    header_bytes = file["bytes"] - 8 - total
    mismatch = f"has {file['bytes']:,} bytes by its manifest, but its arrays have {total:,}"
    _require(0 < header_bytes <= MAX_HEADER, path, mismatch)
    content = _read_file(path, file["bytes"])
    _require(len(content) == file["bytes"], path, f"is cut off after {len(content):,} bytes")
    _require(
        hashlib.sha256(content).hexdigest() == file["sha256"],
        path,
        f"is damaged: its SHA-256 is not the one in {MANIFEST}",
    )
    _require(int.from_bytes(content[:8], "little") == header_bytes, path, mismatch)
    try:
        arrays = {name: _to_array(entry) for name, entry in safetensors.deserialize(content)}
    except (safetensors.SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}.") from None
    specs = {name: array_spec(name, array) for name, array in arrays.items()}
    _require(specs == manifest["arrays"], path, f"does not have the arrays that {MANIFEST} lists")
    return arrays


def _to_array(entry: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _read_file(path: Path, max_bytes: int) -> bytes:
    """Read a regular file; one larger than `max_bytes` is an error."""
    try:
        refuse_link(path)
        status = path.stat()
        _require(stat.S_ISREG(status.st_mode), path, "is not a regular file")
        size = status.st_size
        _require(size <= max_bytes, path, f"has {size:,} bytes; at most {max_bytes:,} are allowed")
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}.") from None


def refuse_link(path: Path) -> None:
    """Raise CheckpointError if `path` is a symbolic link."""
    message = "is a symbolic link, which a checkpoint must not contain. Replace it by a copy"
    _require(not path.is_symlink(), path, message)


def _require(is_valid: bool, path: Path, message: str) -> None:
    if not is_valid:
        raise CheckpointError(f"{str(path)!r} {message}.")
