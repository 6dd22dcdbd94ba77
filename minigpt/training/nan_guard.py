"""NaN and infinity in what a run measures: found at the next record, and named with their step."""

from __future__ import annotations

import math
from typing import Any

from minigpt import checkpoint
from minigpt.data import window_offsets
from minigpt.training.context import TrainContext

# What a step measures, in the words of an error. The loss alone would not do: a step whose loss is
# finite can leave weights that are not.
STEP_MEASURES = {
    "train_loss": "loss",
    "grad_norm": "norm of the gradient",
    "param_norm": "norm of the new parameters",
}
VALIDATION_MEASURES = {
    "train_eval_loss": "loss of the training text at the validation",
    "val_loss": "loss of the validation text at the validation",
}


def first_non_finite(first_step: int, measurements: list[dict[str, Any]]) -> tuple[int, str] | None:
    """The first step whose measurements are not finite, and which one; None if all are finite."""
    for step, measured in enumerate(measurements, first_step):
        for name, words in (STEP_MEASURES | VALIDATION_MEASURES).items():
            if not math.isfinite(measured.get(name, 0.0)):
                return step, f"{words} of step {step} is {measured[name]}"
    return None


def describe(context: TrainContext, step: int, what: str) -> str:
    """The error of a run that stops: its last good checkpoint, and the batch of the step."""
    config, saved = context.config, checkpoint.list_steps(context.run_dir)
    shape = (config.batch_size, config.model.block_size)
    offsets = window_offsets(context.dataset.train, config.seed, step - 1, *shape).tolist()
    return (
        f"the {what}, so the run has stopped; its last good checkpoint is "
        f"{f'step {saved[-1]}' if saved else 'none'}. The rows of the batch begin at the tokens "
        f"{offsets}. Look at it: minigpt replay {context.run_dir} --step {step}."
    )
