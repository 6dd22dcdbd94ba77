"""Overfitting named while it happens, and dropout that may be costing: a function of the records.

The rule. A validation estimates a text's loss from n = eval_batches * batch_size * block_size
tokens. The losses of tokens spread about as much as their mean (for n = 15,360 the README has a
standard deviation of 0.015 at 1.899), so two independent estimates of the same loss L differ by
about L * sqrt(2 / n); three times that is called noise here. (All validations of a run are of the
same windows, so they differ by less, and the rule is slow to speak rather than quick.)

A run overfits when in each of the last three validations the validation text's loss is above its
best by more than noise, and in the last one the training text's loss is below that at the best by
more than noise. The first such validation is told, and then those where the rise has doubled.

At the run's last validation, if a rate of dropout is not 0: there is no gap to close when the
validation text's loss is not above the training text's by more than noise. It is told if noise is
below a twentieth of the loss; of a coarser estimate nothing is said.
"""

from __future__ import annotations

import math
from typing import Any

from minigpt.config import Config
from minigpt.training.early_stopping import is_finished

# What can be done about overfitting, the best first, as docs/claims.md measures: data_size for the
# first, gpt_overfitting and gpt_rates for the next two, interactions for the others.
REMEDIES = (
    "more text",
    "the best checkpoint (--checkpoint best in sample and eval) and an earlier stop (--patience 3)",
    "more dropout (--dropout)",
    "label smoothing (--label-smoothing 0.1)",
    "more weight decay (--optim.weight-decay)",
)
HELPS = f" What helps, best first by docs/claims.md: {'; '.join(REMEDIES)}."
IN_A_ROW = 3
STANDARD_ERRORS = 3


def diagnose(records: list[dict[str, Any]], config: Config) -> str | None:
    """What is to be said after the last record, a validation; None is nothing.

    Whether something was said before follows from the records too, so that a run that goes on says
    what the undisturbed one would.
    """
    validations = [record for record in records if "val_loss" in record]
    if told := _diagnose_overfitting(validations, config):
        return told
    if is_finished(config, validations[-1]["step"], records):
        return _dropout_may_hurt(validations[-1], config)
    return None


def noise(loss: float, config: Config) -> float:
    """By how much two estimates of a loss must differ to be called different."""
    tokens = config.eval_batches * config.batch_size * config.model.block_size
    return STANDARD_ERRORS * loss * math.sqrt(2 / tokens)


def _diagnose_overfitting(validations: list[dict[str, Any]], config: Config) -> str | None:
    """What is said of the last validation; those before it decide whether it is news."""
    best, told, text = validations[0], 0.0, None
    for at, now in enumerate(validations, 1):
        text = None
        best = now if now["val_loss"] < best["val_loss"] else best
        recent = validations[max(at - IN_A_ROW, 0) : at]
        rise = min(each["val_loss"] for each in recent) - best["val_loss"]
        fall = best["train_eval_loss"] - now["train_eval_loss"]
        rises = rise > noise(best["val_loss"], config)
        falls = fall > noise(best["train_eval_loss"], config)
        if rises and falls and rise >= 2 * told:
            text = (
                f"overfitting{' more' if told else ''}: the validation text's loss was {rise:.3f} "
                f"or more above its best ({best['val_loss']:.4f} at step {best['step']}) "
                f"{IN_A_ROW} times in a row, while the training text's fell by {fall:.3f}."
            )
            text += "" if told else HELPS
            told = rise
    return text


def _dropout_may_hurt(last: dict[str, Any], config: Config) -> str | None:
    """That dropout may cost more than it brings, where there is nothing for it to bring."""
    loss, gap = last["val_loss"], last["val_loss"] - last["train_eval_loss"]
    drops = any(vars(config.model.dropout).values())
    if not (drops and gap <= noise(loss, config) < loss / 20):
        return None
    return (
        f"no gap: the validation text's loss is {gap:+.4f} from the training text's, which is "
        f"{'within noise' if gap >= -noise(loss, config) else 'below it'}. Nothing is learnt by "
        "heart, so dropout may be costing: --dropout 0 is worth a try."
    )
