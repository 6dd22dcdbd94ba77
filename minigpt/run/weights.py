"""The weights of a run: its checkpoints have the trained ones, its copy of the parent the frozen.

A run with LoRA or --freeze stores its frozen weights once: RUN_DIR/parent is then a run of weights
only, like that of `minigpt import`, with LoRA layers of the parent merged. Each checkpoint has the
SHA-256 of its file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from minigpt import checkpoint
from minigpt.config import Config
from minigpt.model import GPT, join_trained, split_lora, split_trained, trains_all
from minigpt.run.directory import CONFIG, RunSpec

PARENT_DIR = "parent"
FROZEN_SHA256 = "frozen_sha256"


def checkpoint_like(config: Config, like: Any) -> Any:
    """The structure of a run's checkpoints, from that of a training state.

    A checkpoint has the trained parameters only. An imported run has no optimizer state.
    """
    if not trains_all(config):
        trained = jax.eval_shape(lambda params: split_trained(config, params)[0], like.params)
        like = like._replace(params=trained)
    return like._replace(opt_state=None) if config.imported_from else like


def restore_run(run_dir: Path, config: Config, like: Any, step: int | None = None) -> Any:
    """Restore a step of a run, by default the newest: a training state like `like`, and its meta.

    Its optimizer state is None if the run is imported.
    """
    state, meta = checkpoint.restore(run_dir, checkpoint_like(config, like), step)
    return add_frozen(run_dir, config, like, state, meta), meta


def add_frozen(run_dir: Path, config: Config, like: Any, state: Any, meta: dict[str, Any]) -> Any:
    """The state of a checkpoint with all parameters.

    Raises:
      ValueError: the frozen ones are not those with which the checkpoint was trained.
    """
    if trains_all(config):
        return state
    folder = run_dir / PARENT_DIR
    expected, actual = meta.get(FROZEN_SHA256), frozen_sha256(run_dir, config)
    if actual != expected:
        raise ValueError(
            f"{str(folder)!r} is not allowed: it must have the frozen weights of the run, with "
            f"SHA-256 {expected}, not {actual}. Restore the folder from a copy."
        )
    frozen = split_trained(config, restore_parent_copy(run_dir, like).params)[1]
    return state._replace(params=join_trained(state.params, frozen))


def frozen_sha256(run_dir: Path, config: Config) -> str | None:
    """SHA-256 of the file with the frozen weights of a run; None if all are trained."""
    if trains_all(config):
        return None
    folder = run_dir / PARENT_DIR
    if not (folder / CONFIG).exists():
        raise ValueError(
            f"{str(folder)!r} is missing, or has no {CONFIG}: it has the frozen weights of the "
            "run. Restore the folder from a copy, or train in another --run-dir."
        )
    return checkpoint.arrays_sha256(folder)


def restore_parent_copy(run_dir: Path, like: Any) -> Any:
    """The parent's state from the run's copy, as a tree like `like`; A and B of LoRA are zero."""
    folder = run_dir / PARENT_DIR
    lora, params = split_lora(like.params)
    like = checkpoint_like(RunSpec.load(folder).config, like._replace(params=params))
    state, _ = checkpoint.restore(folder, like)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), lora)
    return state._replace(params=nnx.merge_state(state.params, zeros))


def abstract_parameters(run: RunSpec) -> Any:
    """The shapes of a run's parameters."""
    return nnx.split(
        nnx.eval_shape(lambda: GPT(run.config.model, run.vocab_size, rngs=nnx.Rngs(0)))
    )[1]
