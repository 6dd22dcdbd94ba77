"""A run that begins with another's weights: what it takes over, and its own copy of the parent.

RUN_DIR/parent is a run directory with the parent's config.toml, tokenizer.json and the one
checkpoint that the run begins with. It is copied before the first step, config.toml last, and from
then on the parent's own folder is not looked at: it may train on, change or go.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from minigpt.checkpoint import (
    CheckpointWriter,
    best_step,
    host_arrays,
    restore,
    restore_latest_valid,
)
from minigpt.config import Config
from minigpt.data import Tokenizer
from minigpt.distributed import shard_state
from minigpt.run.directory import CONFIG, RunSpec
from minigpt.training.train_step import CompiledSteps, TrainState

PARENT_DIR = "parent"
# What decides the names, shapes or meaning of the weights (dtype, remat and the rates do not).
WEIGHT_FIELDS = (
    "n_layer",
    "n_head",
    "n_embd",
    "block_size",
    "bias",
    "vocab_size",
    "norm",
    "scan_layers",
)


def parent_dir(parent: Path, run_dir: Path | None) -> Path:
    """Where the parent is read: the run's copy, once it has one."""
    return run_dir / PARENT_DIR if run_dir and _has_parent_copy(run_dir) else parent


def finetune_defaults(begun: Config, parent: Path, steps: int | None = None) -> Config:
    """The settings that a parent's settings suggest; some follow from the number of steps.

    A tenth of its learning rate, so that what it knows is not undone; a quarter of its steps; ten
    validations, and none lower among three ends the run, as little text is soon learnt by heart.
    """
    steps = steps or max(begun.steps // 4, 1)
    optim = dataclasses.replace(
        begun.optim,
        learning_rate=begun.optim.learning_rate / 10,
        min_learning_rate=begun.optim.min_learning_rate / 10,
        warmup_steps=min(begun.optim.warmup_steps, steps // 10),
    )
    where = {"data": None, "run_dir": None, "mesh": None, "tensorboard": False, "profile_steps": 0}
    return dataclasses.replace(
        begun,
        **where,
        parent=parent,
        parent_checkpoint="last",
        steps=steps,
        eval_every=max(steps // 10, 1),
        patience=3,
        optim=optim,
    )


def parent_tokenizer(config: Config, run_dir: Path) -> Tokenizer | None:
    """The parent's, whose shape must be the run's; None where there is no parent."""
    if config.parent is None:
        return None
    parent = RunSpec.load(parent_dir(config.parent, run_dir))
    for name in WEIGHT_FIELDS:
        before, now = getattr(parent.config.model, name), getattr(config.model, name)
        _require_same(f"model.{name}", before, now, config)
    _require_same("tokenizer", parent.config.tokenizer, config.tokenizer, config)
    return parent.tokenizer


def _require_same(name: str, before: Any, now: Any, config: Config) -> None:
    if before != now:
        option = "--" + name.replace("_", "-")
        raise ValueError(
            f"{name}={now!r} is not allowed: the weights of {str(config.parent)!r}, which the run "
            f"begins with, are of {before!r}. Leave {option} out (minigpt finetune takes it from "
            f"there), or train a model from the start: minigpt train {option} {now}."
        )


@contextlib.contextmanager
def copy_parent_checkpoint(
    config: Config, run_dir: Path, like: TrainState, warn: Callable[[str], object]
) -> Iterator[None]:
    """Copy the parent into the run that is begun inside, if it lacks it.

    The parent is read and verified before, so that one that cannot be used begins no run.
    """
    if config.parent is None or _has_parent_copy(run_dir):
        yield
        return
    parent = RunSpec.load(config.parent)
    state, meta = _restore_parent(config.parent, config.parent_checkpoint, like, warn)
    yield
    folder = run_dir / PARENT_DIR
    folder.mkdir(exist_ok=True)
    with CheckpointWriter(folder, keep_last=1) as writer:
        writer.save(int(state.step), host_arrays(state), meta)
    parent.write(folder)


def initial_state(training: CompiledSteps, config: Config, run_dir: Path) -> TrainState:
    """The state before step 1: the seed's or the parent's weights, and a fresh optimizer."""
    if config.parent is None:
        return training.state
    fresh = training.state
    parent, _ = restore(run_dir / PARENT_DIR, fresh)
    params = shard_state(training.mesh, parent.params)
    jax.tree.map(lambda leaf: leaf.delete(), fresh.params)  # or they would lie beside the others
    return fresh._replace(params=params)


def _has_parent_copy(run_dir: Path) -> bool:
    return (run_dir / CONFIG).exists() and (run_dir / PARENT_DIR / CONFIG).exists()


def _restore_parent(
    parent: Path, which: str, like: TrainState, warn: Callable[[str], object]
) -> tuple[TrainState, dict[str, Any]]:
    if which == "best":
        return restore(parent, like, best_step(parent))
    found = restore_latest_valid(parent, like, lambda told: warn(f"{str(parent)!r}: {told}"))
    if found is None:
        raise ValueError(f"parent={str(parent)!r} is not allowed: it has no checkpoint yet.")
    return found
