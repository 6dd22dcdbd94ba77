"""Checkpoints: written while training goes on, committed atomically, verified before they are used.

`RUN_DIR/checkpoints/00001000/` holds `arrays.safetensors` and, written last, `manifest.json`: the
step, every array's shape and dtype, the size and SHA-256 of the other file, the caller's `meta`,
and the SHA-256 of all that. A folder of this name is whole: it was written under a hidden name,
flushed to the disk and renamed. What is read is verified: whatever a disk, a copy or a stranger did
to it is an error that names the file.

The arrays are in safetensors because reading it runs nothing: a length, a JSON header, raw bytes.
Its reader is small, refuses gaps and overlaps, knows bfloat16, and other frameworks open the file.
NumPy's .npz can hold pickles and lacks bfloat16; Orbax brings a storage stack of its own.

Memory: a save holds two copies of the arrays until it is on disk; a restore holds two for a moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import operator
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from minigpt.files import naming

FOLDER, ARRAYS, MANIFEST = "checkpoints", "arrays.safetensors", "manifest.json"
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
_LEFTOVER = re.compile(r"\.[0-9]{8,}(-[0-9]+)?\.(partial|pruned)")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why."""


class _Folder(NamedTuple):
    """A committed checkpoint, ordered as they were written."""

    step: int
    generation: int
    path: Path


# Writing.


class Writer:
    """Saves checkpoints in a background thread; a failed save is raised by the next call.

    Keeps the newest `keep_last` and the one of the least `meta["val_loss"]`. One writer at a time.

    >>> import tempfile
    >>> run_dir, state = Path(tempfile.mkdtemp()), {"weight": jax.numpy.ones(3)}
    >>> with Writer(run_dir) as writer:
    ...     writer.save(1000, host_arrays(state), {"val_loss": 1.5})
    >>> restore(run_dir, like=state)
    ({'weight': array([1., 1., 1.], dtype=float32)}, {'val_loss': 1.5})
    """

    def __init__(self, run_dir: Path, keep_last: int = 3):
        if keep_last < 1:
            raise ValueError(f"keep_last={keep_last} is not allowed: it must be at least 1.")
        self._root, self._keep_last = run_dir / FOLDER, keep_last
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: futures.Future[None] | None = None
        _refuse_link(self._root)
        self._root.mkdir(exist_ok=True)
        _sync(run_dir)
        for path in self._root.iterdir():  # what a killed run was writing or deleting
            if _LEFTOVER.fullmatch(path.name):
                _remove(path)

    def save(self, step: int, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Wait for the save before, copy the arrays, and return; what follows is written meanwhile.

        Checkpoints of this step or a later one are of a run that went back: they are deleted once
        this one is committed.
        """
        self.wait()
        if (step := operator.index(step)) < 0:
            raise ValueError(f"step={step} is not allowed: it must be at least 0.")
        specs = {name: _spec(name, array) for name, array in arrays.items()}
        meta = json.loads(json.dumps(meta))
        # What happens to the arrays after the call changes nothing.
        copies = {name: np.array(array, order="C") for name, array in arrays.items()}
        self._pending = self._thread.submit(self._write, step, copies, specs, meta)

    def wait(self) -> None:
        """Return when the last save is on disk, or raise its error."""
        if self._pending is not None:
            futures.wait([self._pending])
            pending, self._pending = self._pending, None
            pending.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Finish the save in flight; its error does not hide the one that ended the block."""
        try:
            self.wait()
        except (OSError, ValueError) as unsaved:
            if error is None:
                raise
            error.add_note(str(unsaved))
        finally:
            self._thread.shutdown()

    def _write(
        self,
        step: int,
        arrays: dict[str, np.ndarray],
        specs: dict[str, Any],
        meta: dict[str, Any],
    ) -> None:
        data = safetensors.numpy.save(arrays)
        file = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest = {"format": FORMAT, "step": step, "files": {ARRAYS: file}, "arrays": specs}
        try:
            path = _commit(self._root, step, data, _sealed(manifest | {"meta": meta}))
            _prune(self._root, step, path, self._keep_last)
        except OSError as error:
            kept = f"saving step {step}; the checkpoints before it are kept"
            why = f"{error.strerror or error} ({kept})"
            raise OSError(error.errno, why, error.filename) from None


def host_arrays(tree: Any) -> dict[str, np.ndarray]:
    """The leaves on the host, by names such as `params/blocks/0/attn/qkv/kernel/value`.

    On a CPU these are views, so give them to `Writer.save`, which copies, and let them go: a view
    that lives on makes a step that donates its buffers copy them instead.
    """
    return {name: np.asarray(leaf) for name, leaf in _named_leaves(tree).items()}


def _spec(name: str, array: np.ndarray) -> dict[str, Any]:
    dtype = array.dtype.name
    if dtype not in DTYPES.values() or name == "__metadata__":
        raise ValueError(
            f"the array {name!r} of dtype {dtype} is not allowed in a checkpoint: the dtype must "
            f"be one of {', '.join(DTYPES.values())}, and the name not '__metadata__'."
        )
    return {"shape": list(array.shape), "dtype": dtype}


def _commit(root: Path, step: int, data: bytes, manifest: bytes) -> Path:
    """Write a folder under a hidden name, the manifest last, and rename it when it is on disk."""
    same = [folder.generation for folder in _committed(root) if folder.step == step]
    path = root / (f"{step:08d}-{max(same) + 1}" if same else f"{step:08d}")
    partial = root / f".{path.name}.partial"
    with naming(partial):
        partial.mkdir()
    try:
        for name, content in ((ARRAYS, data), (MANIFEST, manifest)):
            with naming(partial / name), (partial / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync(partial)
        with naming(path):
            partial.rename(path)
        _sync(root)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return path


def _prune(root: Path, step: int, written: Path, keep_last: int) -> None:
    """Delete what the one just written replaces, and all but the newest and the best before it.

    One whose manifest cannot be read neither counts nor is deleted: it may be worth a look.
    """
    folders = _committed(root)
    replaced = [folder for folder in folders if folder.step >= step and folder.path != written]
    losses = _losses(folder for folder in folders if folder not in replaced)
    keep = {*list(losses)[-keep_last:], _best(losses)}
    doomed = [folder.path for folder in [*replaced, *(losses.keys() - keep)]]
    for path in doomed:
        with naming(path):
            hidden = path.rename(root / f".{path.name}.pruned")
            _sync(root)  # so that no half-deleted folder has its name back after a power cut
            _remove(hidden)


def _losses(folders: Iterable[_Folder]) -> dict[_Folder, float]:
    """The validation loss of every readable checkpoint; infinite where there is none, or NaN."""
    losses = {}
    for folder in folders:
        with contextlib.suppress(CheckpointError):
            loss = _manifest(folder)["meta"].get("val_loss")
            known = isinstance(loss, int | float) and -math.inf < loss < math.inf
            losses[folder] = loss if known else math.inf
    return losses


def _best(losses: dict[_Folder, float]) -> _Folder | None:
    least = min(losses, key=losses.__getitem__, default=None)
    return least if least and losses[least] < math.inf else None


def _sync(folder: Path) -> None:
    """Make a folder's names durable."""
    with naming(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# Reading.


def steps(run_dir: Path) -> list[int]:
    """The steps that have a committed checkpoint, ascending; nothing is verified yet."""
    return sorted({folder.step for folder in _committed(run_dir / FOLDER)})


def best_step(run_dir: Path) -> int | None:
    """The step of the least `meta["val_loss"]`, by the manifests that can be read."""
    best = _best(_losses(_committed(run_dir / FOLDER)))
    return best and best.step


def read(
    run_dir: Path, step: int, *, max_bytes: int = MAX_BYTES
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A step's arrays and meta, verified; nothing larger than `max_bytes` is read."""
    folder = _folder(run_dir, step)
    manifest = _manifest(folder)
    return _arrays(folder, manifest, max_bytes), manifest["meta"]


def restore(run_dir: Path, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
    """A tree shaped `like` (arrays or jax.ShapeDtypeStruct) and its meta; the newest, if no step.

    The size needs no cap: nothing is read before the manifest names exactly what `like` needs.
    """
    folder = _folder(run_dir, step)
    manifest, wanted = _manifest(folder), _named_leaves(like)
    _match(folder.path / MANIFEST, manifest["arrays"], wanted)
    arrays = _arrays(folder, manifest, max_bytes=_total(manifest))
    leaves = [arrays[name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), manifest["meta"]


def newest_good(
    run_dir: Path, like: Any, warn: Callable[[str], object], most: float = math.inf
) -> tuple[Any, dict[str, Any]] | None:
    """The newest checkpoint that can be restored; `warn` is told of those that cannot.

    Of those of step `most` or before. None where there are none; an error where there are, and
    none is good.
    """
    found = [step for step in steps(run_dir) if step <= most]
    for step in reversed(found):
        try:
            result = restore(run_dir, like, step)
        except CheckpointError as error:
            warn(f"the checkpoint of step {step} is passed over: {error}")
            continue
        if step != found[-1]:
            warn(f"step {step} is the newest good checkpoint")
        return result
    if found:
        raise CheckpointError(
            f"{str(run_dir / FOLDER)!r}: none of its checkpoints can be restored "
            f"(steps {', '.join(map(str, found))})."
        )
    return None


def _committed(root: Path) -> list[_Folder]:
    """Whole checkpoints in the order of their steps; of the same step, as they were written."""
    _refuse_link(root)
    if not root.exists():
        return []
    found = [(path, _COMMITTED.fullmatch(path.name)) for path in root.iterdir()]
    return sorted(_Folder(int(m[1]), int(m[2] or 1), path) for path, m in found if m)


def _folder(run_dir: Path, step: int | None) -> _Folder:
    """The folder of a step, or the newest."""
    found = _committed(run_dir / FOLDER)
    if not found:
        raise CheckpointError(f"{str(run_dir)!r} holds no checkpoint. Is it a run directory?")
    folders = {folder.step: folder for folder in found}
    step = found[-1].step if step is None else step
    if step not in folders:
        raise CheckpointError(
            f"step={step} is not allowed: {str(run_dir)!r} holds checkpoints of the steps "
            f"{', '.join(map(str, folders))}."
        )
    return folders[step]


def _manifest(folder: _Folder) -> dict[str, Any]:
    """A checkpoint's manifest: whole, of this format, of this folder, and naming nothing else."""
    path = folder.path / MANIFEST
    _refuse_link(folder.path)
    _check_names(folder.path)
    data = _content(path, MAX_MANIFEST)
    try:
        manifest = json.loads(data.decode("ascii"))
        whole = manifest.pop("sha256") and _sealed(manifest) == data
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


def _sealed(manifest: dict[str, Any]) -> bytes:
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


def _match(path: Path, specs: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The arrays are those of the model: the same names, shapes and dtypes."""
    changed = "Was config.toml changed?"
    for name in sorted(wanted.keys() - specs.keys()):
        raise CheckpointError(f"{str(path)!r} lacks the array {name!r}. {changed}")
    for name in sorted(specs.keys() - wanted.keys()):
        raise CheckpointError(
            f"{str(path)!r} has the array {name!r}, and the model has none. {changed}"
        )
    for name, leaf in wanted.items():
        shape, dtype = tuple(specs[name]["shape"]), specs[name]["dtype"]
        if (shape, dtype) != (leaf.shape, leaf.dtype.name):
            raise CheckpointError(
                f"{str(path)!r}: the array {name!r} is {dtype}{shape}, and the model needs "
                f"{leaf.dtype.name}{leaf.shape}. {changed}"
            )


def _total(manifest: dict[str, Any]) -> int:
    specs = manifest["arrays"].values()
    return sum(math.prod(spec["shape"]) * np.dtype(spec["dtype"]).itemsize for spec in specs)


def _arrays(folder: _Folder, manifest: dict[str, Any], max_bytes: int) -> dict[str, np.ndarray]:
    """Read the file of arrays once, so that the bytes that are hashed are those that are used."""
    path, file, total = folder.path / ARRAYS, manifest["files"][ARRAYS], _total(manifest)
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
    found = {name: _spec(name, array) for name, array in arrays.items()}
    _require(found == manifest["arrays"], path, f"holds other arrays than {MANIFEST} says")
    return arrays


def _array(entry: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _content(path: Path, limit: int) -> bytes:
    """The bytes of a regular file no larger than `limit`."""
    try:
        _refuse_link(path)
        status = path.stat()
        _require(stat.S_ISREG(status.st_mode), path, "is not a file")
        size = status.st_size
        _require(size <= limit, path, f"is of {size:,} bytes, and may be of {limit:,} at most")
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}.") from None


def _refuse_link(path: Path) -> None:
    _require(
        not path.is_symlink(), path, "is a symbolic link, which a checkpoint may not hold. Copy it"
    )


def _require(holds: bool, path: Path, why: str) -> None:
    if not holds:
        raise CheckpointError(f"{str(path)!r} {why}.")


def _named_leaves(tree: Any) -> dict[str, Any]:
    flat = jax.tree.leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
    if len(named) < len(flat):
        raise ValueError("two leaves of the tree have the same name: rename one, without a '/'.")
    return named
