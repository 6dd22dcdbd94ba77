"""Detect overfitting, and dropout that may be hurting, from the records of a run.

The noise. A validation estimates the loss of a text from n = eval_batches * batch_size * block_size
tokens (of conversations, from the answers' tokens in them, "val_tokens" of the record). The
standard deviation of a token's loss is about as large as the mean loss L (measured for n = 15,360:
the estimate has a standard deviation of 0.015 at a loss of 1.899). So two independent estimates of
the same loss differ by about L * sqrt(2 / n); three times this is the noise below. All validations
of a run use the same windows, so their estimates differ by less, and the rule reports too late
rather than too early.

Overfitting. In each of the last three validations, the validation loss is above its minimum by more
than the noise, and in the last one, the loss on the training text is below its value at that
minimum by more than the noise. It is reported once, and again when the rise has doubled.

Dropout may hurt. At the last validation of a run with dropout, there is no generalization gap: the
validation loss is not above the loss on the training text by more than the noise. It is reported
only if the noise is below a twentieth of the loss, since a coarser estimate shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from minigpt.config import Config
from minigpt.training.early_stopping import is_finished, is_out_of_patience

# Remedies for overfitting, the best first, as measured in docs/claims.md: data_size for the first,
# gpt_overfitting and gpt_rates for the next two, interactions for the others.
REMEDIES = (
    "more text",
    "the best checkpoint (--checkpoint best in sample and eval) and early stopping (--patience 3)",
    "more dropout (--dropout)",
    "label smoothing (--label-smoothing 0.1)",
    "more weight decay (--optim.weight-decay)",
)
ADVICE = f" Remedies, the most effective first: {'; '.join(REMEDIES)}."
IN_A_ROW = 3
STANDARD_ERRORS = 3


def diagnose(records: list[dict[str, Any]], config: Config) -> str | None:
    """The message to print after the last record, which is a validation; None if there is none.

    The records also tell what was reported before, so a resumed run prints the same messages as an
    uninterrupted one.
    """
    validations = [record for record in records if "val_loss" in record]
    *_, message = _overfitting_messages(validations, config)
    if message:
        return message
    if is_finished(config, validations[-1]["step"], records):
        return _dropout_may_hurt(validations[-1], config)
    return None


def noise(loss: float, config: Config, tokens: int | None = None) -> float:
    """The largest difference between two estimates of a loss that can be chance.

    `tokens` is the number of tokens that each is from; None: that of the rows of a text.
    """
    tokens = tokens or config.eval_batches * config.batch_size * config.model.block_size
    return STANDARD_ERRORS * loss * math.sqrt(2 / tokens)


def is_past_its_best(records: list[dict[str, Any]], config: Config) -> bool:
    """Whether a run has reported overfitting, or stopped as its validations no longer improved."""
    validations = [record for record in records if "val_loss" in record]
    has_overfitted = any(_overfitting_messages(validations, config))
    return has_overfitted or is_out_of_patience(config, records)


def _overfitting_messages(
    validations: list[dict[str, Any]], config: Config
) -> Iterator[str | None]:
    """For each validation, its message; the earlier ones decide whether it is new."""
    best, last_reported_rise = validations[0] if validations else {}, 0.0
    for count, validation in enumerate(validations, 1):
        best = validation if validation["val_loss"] < best["val_loss"] else best
        recent = validations[max(count - IN_A_ROW, 0) : count]
        rise = min(record["val_loss"] for record in recent) - best["val_loss"]
        fall = best["train_eval_loss"] - validation["train_eval_loss"]
        tokens = best.get("val_tokens")
        rises = rise > noise(best["val_loss"], config, tokens)
        falls = fall > noise(best["train_eval_loss"], config, tokens)
        if not (rises and falls and rise >= 2 * last_reported_rise):
            yield None
            continue
        is_first = last_reported_rise == 0
        yield (
            f"overfitting{'' if is_first else ' more'}: in the last {IN_A_ROW} validations, "
            f"the validation loss is at least {rise:.3f} above its minimum "
            f"({best['val_loss']:.4f} at step {best['step']}), while the loss on the training "
            f"text fell by {fall:.3f}.{ADVICE if is_first else ''}"
        )
        last_reported_rise = rise


def _dropout_may_hurt(last: dict[str, Any], config: Config) -> str | None:
    """Warn that dropout may be hurting when there is no generalization gap."""
    loss, gap = last["val_loss"], last["val_loss"] - last["train_eval_loss"]
    has_dropout = any(config.model.dropout.rates.values())
    chance = noise(loss, config, last.get("val_tokens"))
    if not (has_dropout and gap <= chance < loss / 20):
        return None
    within_noise = gap >= -chance
    return (
        f"no gap: the validation loss minus the loss on the training text is {gap:+.4f}, "
        f"{'within the noise' if within_noise else 'below zero'}. The model does not overfit, so "
        "dropout may be hurting: try --dropout 0."
    )
