"""Detect NaN and infinity in the metrics of a run, at the latest at the next record."""

from __future__ import annotations

import math
from typing import Any

from minigpt import checkpoint
from minigpt.data import Answers, batch_rows, describe_rows
from minigpt.training.context import TrainContext

# The metrics that are checked, in the words of the error message. The loss alone is not enough: a
# step with a finite loss can still give parameters that are not finite.
METRIC_NAMES = {
    "train_loss": "loss",
    "grad_norm": "norm of the gradient",
    "param_norm": "norm of the new parameters",
    "train_eval_loss": "loss on the training text in the validation",
    "val_loss": "loss on the validation text in the validation",
}


def first_non_finite(first_step: int, metrics: list[dict[str, Any]]) -> tuple[int, str] | None:
    """The first step with a NaN or an infinity, and a description of it; None if there is none."""
    for step, step_metrics in enumerate(metrics, first_step):
        for name, words in METRIC_NAMES.items():
            if not math.isfinite(step_metrics.get(name, 0.0)):
                return step, f"{words} of step {step} is {step_metrics[name]}"
    return None


def error_message(context: TrainContext, step: int, description: str) -> str:
    """The error that stops a run: with its last good checkpoint and the batch of the step."""
    config, saved_steps = context.config, checkpoint.list_steps(context.run_dir)
    shape = (config.batch_size, config.model.block_size)
    data = context.dataset.train
    offsets = batch_rows(data, config.seed, step - 1, *shape)
    rows = describe_rows(offsets, is_text=not isinstance(data, Answers))
    last_good = f"step {saved_steps[-1]}" if saved_steps else "none"
    return (
        f"the {description}; training has stopped. Last good checkpoint: {last_good}. "
        f"{rows[0].upper()}{rows[1:]}. Examine the step: "
        f"minigpt replay {context.run_dir} --step {step}."
    )
