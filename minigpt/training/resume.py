"""Which run goes on: the same settings in the same folder, or the newest unfinished one."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from minigpt.checkpoint import list_steps
from minigpt.config import Config
from minigpt.run import metrics
from minigpt.run.directory import CONFIG, RunSpec

LOCK = ".lock"
# A run that goes on may have these changed: they decide where it runs and what is shown of it, and
# not one parameter. (The text may lie elsewhere: its hash decides. Another mesh adds up in another
# order, and goes on to rounding.)
MAY_CHANGE = frozenset(
    (
        *("data", "run_dir", "log_every", "eval_batches", "sample_tokens"),
        *("keep_checkpoints", "patience", "mesh", "tensorboard", "profile_steps"),
    )
)


@contextlib.contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Hold a run directory; one that another process holds is an error."""
    new = not run_dir.exists()
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
        if new and not (run_dir / CONFIG).exists():  # it came to no run: leave nothing
            with contextlib.suppress(OSError):
                (run_dir / LOCK).unlink()
                run_dir.rmdir()
        lock.release()


def create_or_resume(run: RunSpec, run_dir: Path, *, fresh: bool = False) -> bool:
    """Begin a run in an empty folder, or see that the one there is the same; is it there?"""
    if not (run_dir / CONFIG).exists():
        run.save(run_dir)
        return False
    if fresh:
        raise ValueError(
            f"run_dir={str(run_dir)!r} is not allowed: it holds a run, and --resume never asks for "
            "a new one. Choose another --run-dir, or remove it."
        )
    begun = RunSpec.load(run_dir)
    for name, before, now in differences(begun.config, run.config):
        raise ValueError(
            f"{name}={now!r} is not allowed: the run in {str(run_dir)!r} was begun with {before!r} "
            f"and goes on with it. Choose another --run-dir, or give what it was begun with "
            f"(--config {run_dir / CONFIG})."
        )
    begun._replace(config=run.config).require_same_text(run.data_sha256, run.tokenizer)
    run.save_config(run_dir)
    return True


def differences(begun: Config, now: Config) -> list[tuple[str, Any, Any]]:
    """The fields, by their options' names, that differ and may not."""
    one, other = _flat(begun), _flat(now)
    return [
        (name, one[name], other[name])
        for name in one
        if name not in MAY_CHANGE and one[name] != other[name]
    ]


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        value = str(value) if isinstance(value, Path) else value
        found |= _flat(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found


def run_dir_is_finished(run_dir: Path, config: Config) -> bool:
    """Whether the run's last step is on disk, and validated."""
    saved = list_steps(run_dir)
    if not saved:
        return False
    records = [record for record in metrics.read_metrics(run_dir) if record["step"] <= saved[-1]]
    validated = records[-1:] and records[-1]["step"] == saved[-1] and "val_loss" in records[-1]
    return bool(validated) and is_finished(config, saved[-1], records)


def is_finished(config: Config, step: int, records: list[dict[str, Any]]) -> bool:
    """Whether a step is the last: of all, or by early stopping."""
    return step >= config.steps or out_of_patience(config, records)


def out_of_patience(config: Config, records: list[dict[str, Any]]) -> bool:
    """Whether the last `patience` validations brought nothing lower than those before."""
    if config.patience is None:
        return False
    losses = [record["val_loss"] for record in records if "val_loss" in record]
    recent, before = losses[-config.patience :], losses[: -config.patience]
    return bool(before) and min(recent) >= min(before)


def choose_run_dir(parent: Path, name: str, config: Config, *, fresh: bool = False) -> Path:
    """The newest of parent/name, name-2, ... that is unfinished and has these settings, or the
    first that does not exist.
    """
    paths = (parent / (f"{name}-{n}" if n > 1 else name) for n in itertools.count(1))
    existing = list(itertools.takewhile(Path.exists, paths))
    free = parent / (f"{name}-{len(existing) + 1}" if existing else name)
    for path in [] if fresh else reversed(existing):
        if (
            (path / CONFIG).exists()
            and _has_settings(path, config)
            and not run_dir_is_finished(path, config)
        ):
            return path
    return free


def _has_settings(run_dir: Path, config: Config) -> bool:
    try:
        begun = RunSpec.load(run_dir).config
    except ValueError:
        return False
    return begun.data == config.data and not differences(begun, config)
