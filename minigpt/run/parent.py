"""The parent of a fine-tuned run: its tokenizer and weights, and the run's copy of them.

RUN_DIR/parent is a run directory with the parent's config.toml, its tokenizer.json and the
checkpoint that provides the initial weights. It is copied before the first step, config.toml last.
After that, the original folder is not read: the parent may continue to train, change or be deleted.
The copy for a run that does not train all weights (weights.py) has no optimizer state.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minigpt import checkpoint
from minigpt.config import Config
from minigpt.data import AnyTokenizer, ChatTemplate
from minigpt.model import merge_lora, trains_all
from minigpt.run.directory import CONFIG, RunSpec
from minigpt.run.weights import (
    PARENT_DIR,
    abstract_parameters,
    add_frozen,
    checkpoint_like,
    frozen_sha256,
)

# The settings that decide the names, shapes or meaning of the weights.
WEIGHT_FIELDS = (
    *("n_layer", "n_head", "n_embd", "block_size"),
    *("bias", "activation", "vocab_size", "norm", "scan_layers"),
    *("norm_type", "norm_epsilon", "positions", "rope_theta"),
    *("n_kv_head", "n_inner", "tied_head"),
)


def parent_dir(parent: Path, run_dir: Path | None) -> Path:
    """The folder to read the parent from: the run's copy if there is one, else `parent`."""
    return run_dir / PARENT_DIR if run_dir and _has_parent_copy(run_dir) else parent


def kept_tokenizer(config: Config, run_dir: Path) -> AnyTokenizer | None:
    """The tokenizer that the run in a directory or the parent keeps; None if the text gives it.

    So a run goes on when the file that its tokenizer came from has changed or is gone.
    """
    if config.parent is None and (run_dir / CONFIG).exists():
        run = RunSpec.load(run_dir)
        saved = run.config
        is_same = (saved.tokenizer, saved.vocab_size) == (config.tokenizer, config.vocab_size)
        return run.inherited_tokenizer if is_same and saved.parent is None else None
    return _parent_tokenizer(config, run_dir)


def kept_chat_template(config: Config, run_dir: Path) -> ChatTemplate | None:
    """The chat template of the run in a directory, or of the parent of a new run."""
    if (run_dir / CONFIG).exists():
        return RunSpec.load(run_dir).chat_template
    return None if config.parent is None else RunSpec.load(config.parent).chat_template


def _parent_tokenizer(config: Config, run_dir: Path) -> AnyTokenizer | None:
    """The parent's tokenizer, after a check that its weights fit the model; None if no parent."""
    if config.parent is None:
        return None
    parent = RunSpec.load(parent_dir(config.parent, run_dir))
    is_rotary = parent.config.model.positions == "rotary"  # then no weight has the context's size
    for name in (name for name in WEIGHT_FIELDS if not (name == "block_size" and is_rotary)):
        parent_value, value = getattr(parent.config.model, name), getattr(config.model, name)
        _require_same(f"model.{name}", parent_value, value, config.parent)
    _require_same("tokenizer", parent.config.tokenizer, config.tokenizer, config.parent)
    return parent.tokenizer


def _require_same(name: str, parent_value: Any, value: Any, parent: Path) -> None:
    if parent_value != value:
        option = "--" + name.replace("_", "-")
        raise ValueError(
            f"{name}={value!r} is not allowed: the parent, {str(parent)!r}, was trained with "
            f"{parent_value!r}. Leave {option} out (minigpt finetune takes it from the parent), or "
            f"train a new model: minigpt train {option} {value}."
        )


@contextlib.contextmanager
def copy_parent_checkpoint(
    config: Config, run_dir: Path, like: Any, warn: Callable[[str], object]
) -> Iterator[None]:
    """Copy the parent into the run that the block creates, unless the run has a copy.

    The parent's checkpoint is restored before the block, as a tree like `like`, so that an unusable
    parent creates no run.
    """
    if config.parent is None or _has_parent_copy(run_dir):
        yield
        return
    if checkpoint.list_steps(run_dir):
        frozen_sha256(run_dir, config)  # a lost copy is an error: the parent may have changed
    parent, which = RunSpec.load(config.parent), config.parent_checkpoint
    if trains_all(config) and trains_all(parent.config):
        like = checkpoint_like(parent.config, like)
        state, meta = _restore_parent(config.parent, which, like, warn)
    else:
        like = like._replace(params=abstract_parameters(parent), opt_state=None)
        state, meta = _restore_weights(parent, config.parent, which, like, warn)
        parent = _without_training(parent, config.parent)
    yield
    folder = run_dir / PARENT_DIR
    folder.mkdir(exist_ok=True)
    with checkpoint.CheckpointWriter(folder, keep_last=1) as writer:
        writer.save(int(state.step), checkpoint.host_arrays(state), meta)
    parent.write(folder)


def _has_parent_copy(run_dir: Path) -> bool:
    return (run_dir / CONFIG).exists() and (run_dir / PARENT_DIR / CONFIG).exists()


def _restore_weights(
    parent: RunSpec, folder: Path, which: str, like: Any, warn: Callable[[str], object]
) -> tuple[Any, dict[str, Any]]:
    """All weights of a parent, its LoRA layers merged, without optimizer state, and the meta."""
    trained = checkpoint_like(parent.config, like)
    state, meta = _restore_parent(folder, which, trained, warn, ignore="opt_state/")
    state = add_frozen(folder, parent.config, like, state, meta)
    return state._replace(params=merge_lora(parent.config.model, state.params)), meta


def _without_training(parent: RunSpec, folder: Path) -> RunSpec:
    """The parent as a run of weights only, like an imported one."""
    config = parent.config
    config = dataclasses.replace(
        config,
        parent=None,
        freeze=None,
        imported_from=config.imported_from or str(folder),
        model=config.model.without_lora(),
    )
    return parent._replace(config=config)


def _restore_parent(
    parent: Path,
    which: str,
    like: Any,
    warn: Callable[[str], object],
    *,
    ignore: str | None = None,
) -> tuple[Any, dict[str, Any]]:
    if which == "best":
        return checkpoint.restore(parent, like, checkpoint.best_step(parent), ignore=ignore)
    restored = checkpoint.restore_latest_valid(
        parent, like, lambda message: warn(f"{str(parent)!r}: {message}"), ignore=ignore
    )
    if restored is None:
        raise ValueError(
            f"parent={str(parent)!r} is not allowed: it has no checkpoint yet. Train it at least "
            "until its first validation."
        )
    return restored
