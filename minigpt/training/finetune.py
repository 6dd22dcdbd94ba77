"""The default settings of a fine-tuned run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from minigpt.config import Config


def finetune_defaults(
    config: Config, parent: Path, steps: int | None = None, *, lora: bool = False
) -> Config:
    """The default settings for fine-tuning a run with the settings `config`.

    A tenth of the parent's learning rate, to keep most of what it has learned, or with LoRA, which
    begins at zero and needs about ten times as much, all of it; a quarter of its steps, or `steps`;
    ten validations, and early stopping after three without a lower loss, because a model soon
    overfits a short text. LoRA layers of the parent are merged into its weights.
    """
    steps = steps or max(config.steps // 4, 1)
    minimum = config.optim.min_learning_rate
    optim = dataclasses.replace(
        config.optim,
        learning_rate=config.optim.learning_rate / (1 if lora else 10),
        min_learning_rate=minimum and minimum / (1 if lora else 10),
        warmup_steps=min(config.optim.warmup_steps, steps // 10),
    )
    return dataclasses.replace(
        config,
        data=None,
        val_data=None,
        run_dir=None,
        mesh=None,
        tensorboard=False,
        wandb=False,
        profile_steps=0,
        parent=parent,
        parent_checkpoint="last",
        steps=steps,
        extended_from=(),
        imported_from=None,
        freeze=None,
        dropout_schedule_steps=None,
        eval_every=max(steps // 10, 1),
        patience=3,
        model=config.model.without_lora(),
        optim=optim,
    )
