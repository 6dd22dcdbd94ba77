"""The parent of a fine-tuned run: what the run takes from it, and the run's own copy of it.

RUN_DIR/parent is a run directory with the parent's config.toml, tokenizer.json and the one
checkpoint that the run begins with. It is copied before the first step, config.toml last; from then
on the parent's own folder is not read, so it may train on, change or be deleted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minigpt import checkpoint
from minigpt.config import Config
from minigpt.data import Tokenizer
from minigpt.run.directory import CONFIG, RunSpec

PARENT_DIR = "parent"
# What decides the names, shapes or meaning of the weights (dtype, remat and the rates do not).
WEIGHT_FIELDS = (
    *("n_layer", "n_head", "n_embd", "block_size"),
    *("bias", "vocab_size", "norm", "scan_layers"),
)


def parent_dir(parent: Path, run_dir: Path | None) -> Path:
    """The folder that the parent is read from: the run's copy if it has one."""
    return run_dir / PARENT_DIR if run_dir and _has_parent_copy(run_dir) else parent


def parent_tokenizer(config: Config, run_dir: Path) -> Tokenizer | None:
    """The parent's tokenizer, after a check that its weights fit; None without a parent."""
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
            f"{name}={now!r} is not allowed: the weights of {str(config.parent)!r}, the parent, "
            f"have {before!r}. Leave {option} out (minigpt finetune takes it from the parent), or "
            f"train a model from the start: minigpt train {option} {now}."
        )


@contextlib.contextmanager
def copy_parent_checkpoint(
    config: Config, run_dir: Path, like: Any, warn: Callable[[str], object]
) -> Iterator[None]:
    """Copy the parent into the run that the block creates, unless the run has its copy.

    The parent's checkpoint is read and verified before the block, as a tree like `like`, so that a
    parent that cannot be used creates no run.
    """
    if config.parent is None or _has_parent_copy(run_dir):
        yield
        return
    parent = RunSpec.load(config.parent)
    state, meta = _restore_parent(config.parent, config.parent_checkpoint, like, warn)
    yield
    folder = run_dir / PARENT_DIR
    folder.mkdir(exist_ok=True)
    with checkpoint.CheckpointWriter(folder, keep_last=1) as writer:
        writer.save(int(state.step), checkpoint.host_arrays(state), meta)
    parent.write(folder)


def restore_parent_copy(run_dir: Path, like: Any) -> Any:
    """The state that a fine-tuned run begins with, as a tree like `like`."""
    state, _ = checkpoint.restore(run_dir / PARENT_DIR, like)
    return state


def _has_parent_copy(run_dir: Path) -> bool:
    return (run_dir / CONFIG).exists() and (run_dir / PARENT_DIR / CONFIG).exists()


def _restore_parent(
    parent: Path, which: str, like: Any, warn: Callable[[str], object]
) -> tuple[Any, dict[str, Any]]:
    if which == "best":
        return checkpoint.restore(parent, like, checkpoint.best_step(parent))
    restored = checkpoint.restore_latest_valid(
        parent, like, lambda message: warn(f"{str(parent)!r}: {message}")
    )
    if restored is None:
        raise ValueError(
            f"parent={str(parent)!r} is not allowed: it has no checkpoint yet. Train it at least "
            "to its first validation."
        )
    return restored
