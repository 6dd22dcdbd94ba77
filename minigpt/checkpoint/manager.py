"""Checkpoints: written while training goes on, committed atomically, verified before they are used.

A folder `RUN_DIR/checkpoints/00001000/` is whole: it was written under a hidden name, its manifest
last, flushed to the disk and renamed. What it holds and how it is verified is in manifest.py.

Memory: a save holds two copies of the arrays until it is on disk; a restore holds two for a moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import operator
import re
import shutil
from collections.abc import Callable, Iterable
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
        self._root, self._keep_last = run_dir / DIR_NAME, keep_last
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: futures.Future[None] | None = None
        refuse_link(self._root)
        self._root.mkdir(exist_ok=True)
        fsync_dir(run_dir)
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
        specs = {name: array_spec(name, array) for name, array in arrays.items()}
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

    def __enter__(self) -> CheckpointWriter:
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
            path = _new_path(self._root, step)
            manifest_json = serialize_manifest(manifest | {"meta": meta})
            write_dir_atomic(path, {ARRAYS: data, MANIFEST: manifest_json})  # the manifest last
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


def _new_path(root: Path, step: int) -> Path:
    """Where a step is saved: beside an earlier save of the same step, which stays until then."""
    generations = [each.generation for each in list_checkpoints(root) if each.step == step]
    return root / (f"{step:08d}-{max(generations) + 1}" if generations else f"{step:08d}")


def _prune(root: Path, step: int, written: Path, keep_last: int) -> None:
    """Delete what the one just written replaces, and all but the newest and the best before it.

    One whose manifest cannot be read neither counts nor is deleted: it may be worth a look.
    """
    folders = list_checkpoints(root)
    replaced = [folder for folder in folders if folder.step >= step and folder.path != written]
    losses = _validation_losses(folder for folder in folders if folder not in replaced)
    keep = {*list(losses)[-keep_last:], _best(losses)}
    doomed = [folder.path for folder in [*replaced, *(losses.keys() - keep)]]
    for path in doomed:
        with name_in_errors(path):
            hidden = path.rename(root / f".{path.name}.pruned")
            fsync_dir(root)  # so that no half-deleted folder has its name back after a power cut
            _remove(hidden)


def _validation_losses(folders: Iterable[CheckpointDir]) -> dict[CheckpointDir, float]:
    """The validation loss of every readable checkpoint; infinite where there is none, or NaN."""
    losses = {}
    for folder in folders:
        with contextlib.suppress(CheckpointError):
            loss = read_manifest(folder)["meta"].get("val_loss")
            known = isinstance(loss, int | float) and -math.inf < loss < math.inf
            losses[folder] = loss if known else math.inf
    return losses


def _best(losses: dict[CheckpointDir, float]) -> CheckpointDir | None:
    least = min(losses, key=losses.__getitem__, default=None)
    return least if least and losses[least] < math.inf else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# Reading.


def list_steps(run_dir: Path) -> list[int]:
    """The steps that have a committed checkpoint, ascending; nothing is verified yet."""
    return sorted({folder.step for folder in list_checkpoints(run_dir / DIR_NAME)})


def best_step(run_dir: Path) -> int | None:
    """The step of the least `meta["val_loss"]`, by the manifests that can be read."""
    best = _best(_validation_losses(list_checkpoints(run_dir / DIR_NAME)))
    return best and best.step


def read(
    run_dir: Path, step: int, *, max_bytes: int = MAX_BYTES
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A step's arrays and meta, verified; nothing larger than `max_bytes` is read."""
    folder = _checkpoint_dir(run_dir, step)
    manifest = read_manifest(folder)
    return read_arrays(folder, manifest, max_bytes), manifest["meta"]


def restore(run_dir: Path, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
    """A tree shaped `like` (arrays or jax.ShapeDtypeStruct) and its meta; the newest, if no step.

    The size needs no cap: nothing is read before the manifest names exactly what `like` needs.
    """
    folder = _checkpoint_dir(run_dir, step)
    manifest, wanted = read_manifest(folder), _named_leaves(like)
    _require_same_arrays(folder.path / MANIFEST, manifest["arrays"], wanted)
    arrays = read_arrays(folder, manifest, max_bytes=total_bytes(manifest))
    leaves = [arrays[name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), manifest["meta"]


def restore_latest_valid(
    run_dir: Path, like: Any, warn: Callable[[str], object], most: float = math.inf
) -> tuple[Any, dict[str, Any]] | None:
    """The newest checkpoint that can be restored; `warn` is told of those that cannot.

    Of those of step `most` or before. None where there are none; an error where there are, and
    none is good.
    """
    found = [step for step in list_steps(run_dir) if step <= most]
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
            f"{str(run_dir / DIR_NAME)!r}: none of its checkpoints can be restored "
            f"(steps {', '.join(map(str, found))})."
        )
    return None


def _checkpoint_dir(run_dir: Path, step: int | None) -> CheckpointDir:
    """The folder of a step, or the newest."""
    found = list_checkpoints(run_dir / DIR_NAME)
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


def _require_same_arrays(path: Path, specs: dict[str, Any], wanted: dict[str, Any]) -> None:
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


def _named_leaves(tree: Any) -> dict[str, Any]:
    flat = jax.tree.leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
    if len(named) < len(flat):
        raise ValueError("two leaves of the tree have the same name: rename one, without a '/'.")
    return named
