"""Open a run directory: lock it, compare settings and text, copy the parent, restore the state.

The trainer opens a run only with `open_run`, which returns all that it needs from the folder.
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
from minigpt.run.extend import with_extensions
from minigpt.run.parent import copy_parent_checkpoint
from minigpt.run.streams import save_streams
from minigpt.run.weights import add_frozen, checkpoint_like, restore_parent_copy

LOCK = ".lock"
# A run may resume with other values of these: they decide where it runs, what it prints and when it
# stops, and change no step. (The text may move, since its hash is compared. Another mesh sums in
# another order, so the results agree up to rounding.)
MAY_CHANGE = frozenset(
    (
        *("data", "val_data", "text_field"),
        *("run_dir", "log_every", "eval_batches", "sample_tokens", "sample_every"),
        *("keep_checkpoints", "patience", "mesh", "tensorboard", "wandb", "profile_steps"),
    )
)


class OpenRun(NamedTuple):
    """A run that this process may train, and the state to start from."""

    state: Any | None
    """state of the latest valid checkpoint, on the host; None for a new run"""
    meta: dict[str, Any]
    """meta of that checkpoint; empty for a new run"""
    parent_state: Any | None
    """state of the parent, on the host, for a new fine-tuned run"""


@contextlib.contextmanager
def open_run(
    spec: RunSpec,
    run_dir: Path,
    like: Any,
    warn: Callable[[str], object],
    *,
    fresh: bool = False,
    extend: bool = False,
) -> Iterator[OpenRun]:
    """Lock a run directory and restore its state, a tree like `like`.

    The lock lasts as long as the `with` block. `fresh` refuses a folder that contains a run;
    `extend` lets a run go on to more steps, with the settings of `with_extensions`. With several
    processes, the main one writes, and all of them read what it has written.
    """
    config, writes = spec.config, is_main_process()
    with lock_run_dir(run_dir) if writes else contextlib.nullcontext():
        if writes:
            was_begun = (run_dir / CONFIG).exists()
            with copy_parent_checkpoint(config, run_dir, like, warn):
                create_or_resume(spec, run_dir, fresh=fresh, extend=extend)
            if was_begun and not checkpoint.list_steps(run_dir):
                warn(
                    "the run stopped before its first checkpoint and starts again at step 1; "
                    f"checkpoints are written every {config.eval_every} steps (--eval-every)"
                )
        barrier("opened")
        yield _restore(spec, run_dir, like, warn)


class RunDirInUseError(ValueError):
    """Another process is training in the directory."""


@contextlib.contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Lock a run directory; it is an error if another process has locked it.

    A process may lock it again inside the `with` block. What is new and has no run at the end is
    removed.
    """
    is_new, is_in_new_folder = not run_dir.exists(), not run_dir.parent.exists()
    if not is_new and not run_dir.is_dir():
        raise ValueError(
            f"run_dir={str(run_dir)!r} is not allowed: it must be a folder, and there is a file of "
            "this name. Choose another --run-dir."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(run_dir.absolute() / LOCK, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RunDirInUseError(
            f"run_dir={str(run_dir)!r} is not allowed: another process is training in it. Wait "
            "until it ends, or choose another --run-dir."
        ) from None
    try:
        yield
    finally:
        if is_new and not (run_dir / CONFIG).exists():  # no run was created: remove the folder
            with contextlib.suppress(OSError):
                (run_dir / LOCK).unlink()
                run_dir.rmdir()
                if is_in_new_folder:
                    run_dir.parent.rmdir()
        lock.release()


def create_or_resume(
    spec: RunSpec, run_dir: Path, *, fresh: bool = False, extend: bool = False
) -> None:
    """Create a run in an empty folder, or check that the run in it has the same settings."""
    if not (run_dir / CONFIG).exists():
        spec.save(run_dir)
        return
    if fresh:
        raise ValueError(
            f"run_dir={str(run_dir)!r} is not allowed: it contains a run, and --resume "
            "never accepts only a folder without one. Choose another --run-dir, or remove this one."
        )
    saved = RunSpec.load(run_dir)
    if extend:
        saved = saved._replace(config=_extend(saved.config, spec.config, run_dir))
    for name, saved_value, value in differences(saved.config, spec.config):
        extension = ""
        if name == "steps" and value > saved_value:
            extension = f"Add --extend to go on to {value} steps, choose"
        raise ValueError(
            f"{name}={value!r} is not allowed: the run in {str(run_dir)!r} was started with "
            f"{saved_value!r} and resumes only with this value. {extension or 'Choose'} another "
            f"--run-dir, or keep it and use the settings of the run: --config {run_dir / CONFIG}."
        )
    saved._replace(config=spec.config).require_same_text(spec.data_sha256, spec.tokenizer)
    spec._replace(config=save_streams(spec.config, run_dir)).save_config(run_dir)


def _extend(saved: Config, config: Config, run_dir: Path) -> Config:
    """The saved settings with the steps and extensions of `config`, which must be up to date."""
    if with_extensions(config, run_dir, extend=True) != config:
        raise ValueError(
            f"run_dir={str(run_dir)!r} is not allowed: another process has trained in it since "
            "this command started. Repeat the command."
        )
    return dataclasses.replace(saved, steps=config.steps, extended_from=config.extended_from)


def differences(saved: Config, config: Config) -> list[tuple[str, Any, Any]]:
    """The settings that prevent a run from resuming: (name, saved value, value)."""
    saved_values, values = _flatten(_without_none(saved)), _flatten(_without_none(config))
    return [
        (name, saved_values[name], values[name])
        for name in saved_values
        if name not in MAY_CHANGE and saved_values[name] != values[name]
    ]


def _without_none(config: Config) -> Config:
    """The same settings with the final learning rate as a number, as earlier runs saved it."""
    optim = config.optim
    optim = dataclasses.replace(optim, min_learning_rate=optim.final_learning_rate)
    return dataclasses.replace(config, optim=optim)


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        value = str(value) if isinstance(value, Path) else value
        is_table = dataclasses.is_dataclass(value)
        flat |= _flatten(value, f"{name}.") if is_table else {name: value}
    return flat


def _restore(spec: RunSpec, run_dir: Path, like: Any, warn: Callable[[str], object]) -> OpenRun:
    """Restore the latest valid checkpoint, or the copy of the parent, or nothing."""
    restored = checkpoint.restore_latest_valid(run_dir, checkpoint_like(spec.config, like), warn)
    require_equal(str(restored and int(restored[0].step)), "latest valid checkpoints")
    if restored is None:
        has_parent = spec.config.parent is not None
        parent_state = restore_parent_copy(run_dir, like) if has_parent else None
        return OpenRun(None, {}, parent_state)
    state, meta = restored
    saved = spec._replace(data_sha256=meta["data_sha256"])
    saved.require_same_text(spec.data_sha256, spec.tokenizer)
    return OpenRun(add_frozen(run_dir, spec.config, like, state, meta), meta, None)
