"""Checkpoints: written in the background, committed atomically, verified before use.

A folder `RUN_DIR/checkpoints/00001000/` is complete: it was written under a hidden name, with its
manifest last, flushed to disk and then renamed. See manifest.py for its content and verification.

Memory: a save needs two copies of the arrays until it is on disk; a restore briefly needs two.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import operator
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from minigpt.atomic_write import fsync_dir, name_in_errors, write_dir_atomic
from minigpt.checkpoint.manifest import (
    ARRAYS,
    FORMAT,
    MANIFEST,
    MAX_BYTES,
    CheckpointDir,
    CheckpointError,
    array_spec,
    list_checkpoints,
    read_arrays,
    read_manifest,
    refuse_link,
    serialize_manifest,
    total_bytes,
)

DIR_NAME = "checkpoints"

_LEFTOVER = re.compile(r"\.[0-9]{8,}(-[0-9]+)?\.(partial|pruned)")


# Writing.


class CheckpointWriter:
    """Saves checkpoints in a background thread; the next call raises the error of a failed save.

    Keeps the newest `keep_last` checkpoints and the one with the lowest `meta["val_loss"]`. A
    folder must have one writer at a time.

    >>> import tempfile
    >>> run_dir, state = Path(tempfile.mkdtemp()), {"weight": jax.numpy.ones(3)}
    >>> with CheckpointWriter(run_dir) as writer:
    ...     writer.save(1000, host_arrays(state), {"val_loss": 1.5})
    >>> restore(run_dir, like=state)
    ({'weight': array([1., 1., 1.], dtype=float32)}, {'val_loss': 1.5})
    """

    def __init__(self, run_dir: Path, keep_last: int = 3):
        if keep_last < 1:
            raise ValueError(f"keep_last={keep_last} is not allowed: it must be at least 1.")
        self._root, self._keep_last = run_dir / DIR_NAME, keep_last
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: futures.Future[None] | None = None
        refuse_link(self._root)
        self._root.mkdir(exist_ok=True)
        fsync_dir(run_dir)
        for path in self._root.iterdir():  # a killed run was writing or deleting these
            if _LEFTOVER.fullmatch(path.name):
                _remove(path)

    def save(self, step: int, arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Wait for the previous save, copy the arrays, start writing them, and return.

        After the commit, older checkpoints of this step or of later steps are deleted: the run has
        resumed from an earlier step.
        """
        self.wait()
        if (step := operator.index(step)) < 0:
            raise ValueError(f"step={step} is not allowed: it must be at least 0.")
        specs = {name: array_spec(name, array) for name, array in arrays.items()}
        meta = json.loads(json.dumps(meta))
        # The caller may change or donate the arrays after this call.
        copies = {name: np.array(array, order="C") for name, array in arrays.items()}
        self._pending = self._thread.submit(self._write, step, copies, specs, meta)

    def wait(self) -> None:
        """Wait until the last save is on disk, or raise its error."""
        if self._pending is not None:
            futures.wait([self._pending])
            pending, self._pending = self._pending, None
            pending.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Wait for the last save; its error becomes a note of the error that ended the block."""
        try:
            self.wait()
        except (OSError, ValueError) as save_error:
            if error is None:
                raise
            error.add_note(str(save_error))
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
            path = _new_path(self._root, step)
            manifest_json = serialize_manifest(manifest | {"meta": meta})
            write_dir_atomic(path, {ARRAYS: data, MANIFEST: manifest_json})  # the manifest last
            _prune(self._root, step, path, self._keep_last)
        except OSError as error:
            reason = error.strerror or str(error)
            message = f"{reason} (saving step {step}; earlier checkpoints are kept)"
            raise OSError(error.errno, message, error.filename) from None


def host_arrays(tree: Any) -> dict[str, np.ndarray]:
    """The leaves as NumPy arrays, by names such as `params/blocks/0/attn/qkv/kernel/value`.

    On a CPU they are views. Pass them to `CheckpointWriter.save`, which copies them, and do not
    keep them: while a view is alive, a step cannot donate the buffer and copies it instead.
    """
    return {name: np.asarray(leaf) for name, leaf in _named_leaves(tree).items()}


def _new_path(root: Path, step: int) -> Path:
    """A new folder for a step; an earlier save of the same step stays until the commit."""
    generations = [folder.generation for folder in list_checkpoints(root) if folder.step == step]
    return root / (f"{step:08d}-{max(generations) + 1}" if generations else f"{step:08d}")


def _prune(root: Path, step: int, written: Path, keep_last: int) -> None:
    """Delete the checkpoints that `written` replaces, and earlier ones except newest and best.

    A checkpoint whose manifest cannot be read is not counted and not deleted: the user may want to
    examine it.
    """
    folders = list_checkpoints(root)
    replaced = [folder for folder in folders if folder.step >= step and folder.path != written]
    losses = _validation_losses(folder for folder in folders if folder not in replaced)
    keep = {*list(losses)[-keep_last:], _best(losses)}
    to_delete = [folder.path for folder in [*replaced, *(losses.keys() - keep)]]
    for path in to_delete:
        with name_in_errors(path):
            hidden = path.rename(root / f".{path.name}.pruned")
            # The new name is on disk first: a power cut must not restore the old name of a folder
            # that is half deleted.
            fsync_dir(root)
            _remove(hidden)


def _validation_losses(folders: Iterable[CheckpointDir]) -> dict[CheckpointDir, float]:
    """The validation loss of every readable checkpoint; infinite if it is missing or NaN."""
    losses = {}
    for folder in folders:
        with contextlib.suppress(CheckpointError):
            loss = read_manifest(folder)["meta"].get("val_loss")
            is_finite = isinstance(loss, int | float) and -math.inf < loss < math.inf
            losses[folder] = loss if is_finite else math.inf
    return losses


def _best(losses: dict[CheckpointDir, float]) -> CheckpointDir | None:
    best = min(losses, key=losses.__getitem__, default=None)
    return best if best and losses[best] < math.inf else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# Reading.


def list_steps(run_dir: Path) -> list[int]:
    """The steps with a committed checkpoint, ascending; they are not verified."""
    return sorted({folder.step for folder in list_checkpoints(run_dir / DIR_NAME)})


def best_step(run_dir: Path) -> int | None:
    """The step with the lowest `meta["val_loss"]`, among the manifests that can be read."""
    best = _best(_validation_losses(list_checkpoints(run_dir / DIR_NAME)))
    return best and best.step


def read(
    run_dir: Path, step: int, *, max_bytes: int = MAX_BYTES
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read and verify a step's arrays and meta; arrays above `max_bytes` are an error."""
    folder = _checkpoint_dir(run_dir, step)
    manifest = read_manifest(folder)
    return read_arrays(folder, manifest, max_bytes), manifest["meta"]


def arrays_sha256(run_dir: Path, step: int | None = None) -> str:
    """The SHA-256 of the arrays' file of a step, by default the newest, by its manifest."""
    return read_manifest(_checkpoint_dir(run_dir, step))["files"][ARRAYS]["sha256"]


def restore(
    run_dir: Path, like: Any, step: int | None = None, *, ignore: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """Restore a step, by default the newest: a tree with the structure of `like`, and its meta.

    The leaves of `like` are arrays or jax.ShapeDtypeStruct. Arrays whose name begins with `ignore`
    may be there too, of up to three times the size of the others (AdamW's state has twice that of
    the parameters). No other limit on the size is needed: the arrays are read only if the manifest
    lists exactly those of `like`.
    """
    folder = _checkpoint_dir(run_dir, step)
    manifest, expected = read_manifest(folder), _named_leaves(like)
    specs, max_bytes = manifest["arrays"], total_bytes(manifest)
    if ignore is not None:
        specs = {name: spec for name, spec in specs.items() if not name.startswith(ignore)}
        max_bytes = 4 * total_bytes({"arrays": specs})
    _require_same_arrays(folder.path / MANIFEST, specs, expected)
    arrays = read_arrays(folder, manifest, max_bytes)
    leaves = [arrays[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), manifest["meta"]


def restore_latest_valid(
    run_dir: Path,
    like: Any,
    warn: Callable[[str], object],
    max_step: float = math.inf,
    *,
    ignore: str | None = None,
) -> tuple[Any, dict[str, Any]] | None:
    """Restore the newest valid checkpoint up to `max_step`; `warn` gets a message for each skipped.

    None if there is no checkpoint; an error if there are checkpoints but none is valid.
    """
    steps = [step for step in list_steps(run_dir) if step <= max_step]
    for step in reversed(steps):
        try:
            tree_and_meta = restore(run_dir, like, step, ignore=ignore)
        except CheckpointError as error:
            warn(f"skipping the checkpoint of step {step}: {error}")
            continue
        if step != steps[-1]:
            warn(f"step {step} is the newest valid checkpoint")
        return tree_and_meta
    if steps:
        raise CheckpointError(
            f"{str(run_dir / DIR_NAME)!r}: none of its checkpoints can be restored "
            f"(steps {', '.join(map(str, steps))})."
        )
    return None


def _checkpoint_dir(run_dir: Path, step: int | None) -> CheckpointDir:
    """The folder of a step, by default of the newest."""
    checkpoints = list_checkpoints(run_dir / DIR_NAME)
    if not checkpoints:
        raise CheckpointError(
            f"{str(run_dir)!r} has no checkpoint: no step was saved there, or it is no run. Train "
            f"it: minigpt train --run-dir {run_dir}."
        )
    folders = {folder.step: folder for folder in checkpoints}
    step = checkpoints[-1].step if step is None else step
    if step not in folders:
        raise CheckpointError(
            f"no checkpoint for step {step} in {str(run_dir)!r} (available: "
            f"{', '.join(map(str, folders))})."
        )
    return folders[step]


def _require_same_arrays(path: Path, specs: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise CheckpointError unless names, shapes and dtypes are those of the model."""
    remedy = "Was config.toml changed?"
    for name in sorted(expected.keys() - specs.keys()):
        raise CheckpointError(f"{str(path)!r} lacks the array {name!r}. {remedy}")
    for name in sorted(specs.keys() - expected.keys()):
        raise CheckpointError(
            f"{str(path)!r} has the array {name!r}, which the model lacks. {remedy}"
        )
    for name, leaf in expected.items():
        shape, dtype = tuple(specs[name]["shape"]), specs[name]["dtype"]
        if (shape, dtype) != (leaf.shape, leaf.dtype.name):
            raise CheckpointError(
                f"{str(path)!r}: the array {name!r} is {dtype}{shape}, but the model needs "
                f"{leaf.dtype.name}{leaf.shape}. {remedy}"
            )


def _named_leaves(tree: Any) -> dict[str, Any]:
    flat = jax.tree.leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
    if len(named) < len(flat):
        raise ValueError(
            "two leaves of the tree have the same name: rename one; use no '/' in names."
        )
    return named
