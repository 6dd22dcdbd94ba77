"""Start a training: choose its run directory, train, and say what became of it."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from minigpt.config import Config
from minigpt.data import is_play, is_stream
from minigpt.distributed import is_single_process
from minigpt.run import read_metrics, read_streams
from minigpt.training.early_stopping import run_is_finished
from minigpt.training.run_choice import claim_run_dir
from minigpt.training.trainer import train


class TrainedRun(NamedTuple):
    """A run after training: where it is, and what it recorded."""

    run_dir: Path
    records: list[dict[str, Any]]
    """the records of metrics.jsonl; those of a validation have "val_loss" """
    is_finished: bool
    """False after SIGTERM or Ctrl-C: the same call resumes the run"""


def start_training(
    config: Config, *, name: str, resume: str, extend: bool, console: Console
) -> TrainedRun:
    """Train in config.run_dir, by default in the directory that `claim_run_dir` finds by `name`.

    `resume` is "auto" or "never"; `extend` lets the run go on to more steps than it had.
    """
    _require_options(config, resume, extend)
    config, fresh = _with_absolute_paths(config), resume == "never"
    with contextlib.ExitStack() as stack:
        config = stack.enter_context(read_streams(config, config.run_dir, console.print))
        run_dir = config.run_dir
        if run_dir is None:
            claim = claim_run_dir(Path("runs"), name, config, fresh=fresh)
            run_dir = stack.enter_context(claim)
            config = dataclasses.replace(config, run_dir=run_dir)
        train(config, run_dir, console, fresh=fresh, extend=extend)
    return TrainedRun(run_dir, read_metrics(run_dir), run_is_finished(run_dir, config))


def _require_options(config: Config, resume: str, extend: bool) -> None:
    if resume not in ("auto", "never"):
        raise ValueError(f"resume={resume!r} is not allowed: it must be 'auto' or 'never'.")
    if extend and resume == "never":
        raise ValueError(
            "resume='never' is not allowed with --extend, which goes on with a run. Leave one of "
            "them out."
        )
    if config.run_dir is not None:
        return
    if extend:
        raise ValueError(
            "run_dir=None is not allowed with --extend: it must be the run to go on with. Set "
            "--run-dir."
        )
    if not is_single_process():
        raise ValueError(
            "run_dir=None is not allowed: several processes need the same directory. Set --run-dir."
        )


def _with_absolute_paths(config: Config) -> Config:
    """Make paths absolute, so that other commands find the text and the parent from any folder."""
    data, val_data = (
        paths and tuple(p if is_play(p) or is_stream(p) else p.resolve() for p in paths)
        for paths in (config.data, config.val_data)
    )
    parent = config.parent and config.parent.resolve()
    return dataclasses.replace(config, data=data, val_data=val_data, parent=parent)
