"""May this run start? Lock its folder, compare settings and text, copy the parent, resume.

`open_run` is the only door: what it hands back is all that the trainer needs of the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from minigpt import checkpoint
from minigpt.config import Config
from minigpt.distributed import barrier, is_main_process, require_equal
from minigpt.run.directory import CONFIG, RunSpec
from minigpt.run.parent import copy_parent_checkpoint, restore_parent_copy

LOCK = ".lock"
# A run that resumes may have these changed: they decide where it runs and what is shown of it, and
# not one parameter. (The text may be moved: its hash decides. Another mesh adds up in another
# order, so the run resumes to rounding.)
MAY_CHANGE = frozenset(
    (
        *("data", "run_dir", "log_every", "eval_batches", "sample_tokens"),
        *("keep_checkpoints", "patience", "mesh", "tensorboard", "profile_steps"),
    )
)


class OpenRun(NamedTuple):
    """A run that this process may train: its folder, and where it starts from."""

    spec: RunSpec
    run_dir: Path
    state: Any | None
    """the latest valid checkpoint's tree, on the host; None for a new run"""
    meta: dict[str, Any]
    """that checkpoint's; empty for a new run"""
    parent_state: Any | None
    """the tree that a new fine-tuned run begins with, on the host"""


@contextlib.contextmanager
def open_run(
    spec: RunSpec, run_dir: Path, like: Any, warn: Callable[[str], object], *, fresh: bool = False
) -> Iterator[OpenRun]:
    """Hold a run directory while the block trains in it; checkpoints are trees like `like`.

    `fresh` refuses a folder that holds a run. Of many processes the main one writes, and all of
    them read what it has written.
    """
    config, writes = spec.config, is_main_process()
    with lock_run_dir(run_dir) if writes else contextlib.nullcontext():
        if writes:
            with copy_parent_checkpoint(config, run_dir, like, warn):
                create_or_resume(spec, run_dir, fresh=fresh)
        barrier("opened")
        yield _restore(spec, run_dir, like, warn)


@contextlib.contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Lock a run directory; one that another process has locked is an error."""
    is_new = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(run_dir / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(
            f"run_dir={str(run_dir)!r} is not allowed: another run is writing into it. Wait for "
            "it, or choose another --run-dir."
        ) from None
    try:
        yield
    finally:
        if is_new and not (run_dir / CONFIG).exists():  # no run was created: leave nothing
            with contextlib.suppress(OSError):
                (run_dir / LOCK).unlink()
                run_dir.rmdir()
        lock.release()


def create_or_resume(spec: RunSpec, run_dir: Path, *, fresh: bool = False) -> None:
    """Create a run in an empty folder, or check that the run in it is this one."""
    if not (run_dir / CONFIG).exists():
        spec.save(run_dir)
        return
    if fresh:
        raise ValueError(
            f"run_dir={str(run_dir)!r} is not allowed: it holds a run, and --resume never asks for "
            "a new one. Choose another --run-dir, or remove it."
        )
    earlier = RunSpec.load(run_dir)
    for name, before, now in differences(earlier.config, spec.config):
        raise ValueError(
            f"{name}={now!r} is not allowed: the run in {str(run_dir)!r} was started with "
            f"{before!r} and resumes only with that. Choose another --run-dir, or give the "
            f"settings it was started with (--config {run_dir / CONFIG})."
        )
    earlier._replace(config=spec.config).require_same_text(spec.data_sha256, spec.tokenizer)
    spec.save_config(run_dir)


def differences(earlier: Config, now: Config) -> list[tuple[str, Any, Any]]:
    """The settings, by their options' names, that differ and must not."""
    before, after = _flatten(earlier), _flatten(now)
    return [
        (name, before[name], after[name])
        for name in before
        if name not in MAY_CHANGE and before[name] != after[name]
    ]


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        value = str(value) if isinstance(value, Path) else value
        is_table = dataclasses.is_dataclass(value)
        flat |= _flatten(value, f"{name}.") if is_table else {name: value}
    return flat


def _restore(spec: RunSpec, run_dir: Path, like: Any, warn: Callable[[str], object]) -> OpenRun:
    """The latest valid checkpoint, or the parent's copy, or neither."""
    restored = checkpoint.restore_latest_valid(run_dir, like, warn)
    require_equal(str(restored and int(restored[0].step)), "latest valid checkpoints")
    if restored is None:
        has_parent = spec.config.parent is not None
        parent_state = restore_parent_copy(run_dir, like) if has_parent else None
        return OpenRun(spec, run_dir, None, {}, parent_state)
    state, meta = restored
    saved = spec._replace(data_sha256=meta["data_sha256"])
    saved.require_same_text(spec.data_sha256, spec.tokenizer)
    return OpenRun(spec, run_dir, state, meta, None)
