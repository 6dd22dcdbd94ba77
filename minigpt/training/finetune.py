"""The default settings of a run that fine-tunes another."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from minigpt.config import Config


def finetune_defaults(config: Config, parent: Path, steps: int | None = None) -> Config:
    """The settings that those of a parent suggest; some follow from the number of steps.

    A tenth of its learning rate, which keeps most of what it has learned; a quarter of its steps;
    ten validations, and early stopping after three without a lower loss, since a short text is
    soon overfitted.
    """
    steps = steps or max(config.steps // 4, 1)
    optim = dataclasses.replace(
        config.optim,
        learning_rate=config.optim.learning_rate / 10,
        min_learning_rate=config.optim.min_learning_rate / 10,
        warmup_steps=min(config.optim.warmup_steps, steps // 10),
    )
    return dataclasses.replace(
        config,
        data=None,
        run_dir=None,
        mesh=None,
        tensorboard=False,
        profile_steps=0,
        parent=parent,
        parent_checkpoint="last",
        steps=steps,
        eval_every=max(steps // 10, 1),
        patience=3,
        optim=optim,
    )
