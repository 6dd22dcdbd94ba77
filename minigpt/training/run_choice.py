"""Which directory a run takes that was given none."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from minigpt.config import Config
from minigpt.run import (
    CONFIG,
    LOCK,
    RunDirInUseError,
    RunSpec,
    differences,
    has_same_data,
    lock_run_dir,
)
from minigpt.training.early_stopping import run_is_finished


@contextlib.contextmanager
def claim_run_dir(
    folder: Path, name: str, config: Config, *, fresh: bool = False
) -> Iterator[Path]:
    """Choose a run directory and lock it, so that runs that start at once take different ones.

    It is the newest of folder/NAME, folder/NAME-2, ... that is unfinished, has these settings and
    in which no process is training. If there is none, or with `fresh`: the first unused name.
    """
    for path in _candidates(folder, name, config, fresh=fresh):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock_run_dir(path))
            except RunDirInUseError:
                continue
            if _is_unused(path) or _can_resume(path, config):  # as before it was locked
                yield path
                return


def _candidates(folder: Path, name: str, config: Config, *, fresh: bool) -> Iterator[Path]:
    numbered = (folder / (f"{name}-{n}" if n > 1 else name) for n in itertools.count(1))
    existing = list(itertools.takewhile(Path.exists, numbered))
    if not fresh:
        yield from (path for path in reversed(existing) if _can_resume(path, config))
    numbers = itertools.count(len(existing) + 1)
    yield from (folder / (f"{name}-{n}" if n > 1 else name) for n in numbers)


def _is_unused(run_dir: Path) -> bool:
    return {path.name for path in run_dir.iterdir()} <= {LOCK}


def _can_resume(run_dir: Path, config: Config) -> bool:
    return _has_settings(run_dir, config) and not run_is_finished(run_dir, config)


def _has_settings(run_dir: Path, config: Config) -> bool:
    if not (run_dir / CONFIG).exists():
        return False
    try:
        saved = RunSpec.load(run_dir).config
    except ValueError:
        return False
    return has_same_data(saved, config) and not differences(saved, config)
