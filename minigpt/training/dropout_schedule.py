"""The dropout rates of each step: those of the settings, or a schedule over the steps."""

from __future__ import annotations

from typing import Any

import optax
from jax.typing import ArrayLike

from dropout_jax import curriculum_dropout, early_dropout, late_dropout
from minigpt.config import Config


def scheduled_rates(config: Config, step: ArrayLike) -> dict[str, Any]:
    """The rates that the schedule gives a step, from 0, by site; empty if the rates are constant.

    A site whose rate is 0 stays without dropout. The step may be traced: the rates are traced then.

    >>> from minigpt.config import DropoutConfig, ModelConfig
    >>> model = ModelConfig(dropout=DropoutConfig(mlp_out=0.5))
    >>> config = Config(steps=100, dropout_schedule="late", model=model)
    >>> [float(scheduled_rates(config, step)["mlp_out"]) for step in (0, 49, 50)]
    [0.0, 0.0, 0.5]
    """
    if config.dropout_schedule == "constant":
        return {}
    build = SCHEDULES[config.dropout_schedule]
    length = config.dropout_schedule_steps or default_length(config)
    rates = config.model.dropout.rates
    return {name: build(rate, length)(step) for name, rate in rates.items() if rate}


def default_length(config: Config) -> int:
    """The schedule's length where dropout_schedule_steps is None."""
    changes_once = config.dropout_schedule in ("early", "late")
    return max(config.steps // 2, 1) if changes_once else config.steps


# Each takes a rate and the schedule's length; the curriculum's gamma is the paper's.
SCHEDULES: dict[str, Any] = {
    "linear": lambda rate, length: optax.linear_schedule(rate, 0.0, length),
    "early": early_dropout,
    "late": late_dropout,
    "curriculum": lambda rate, length: curriculum_dropout(rate, 10 / length),
}


def require_dropout(config: Config) -> None:
    """Raise ValueError for a schedule, over the steps or over depth, of rates that are all 0."""
    dropout = config.model.dropout
    in_blocks = any(rate for name, rate in dropout.rates.items() if name != "embed")
    for name, value, has_effect in (
        ("dropout_schedule", config.dropout_schedule, in_blocks or dropout.embed),
        ("model.dropout.over_depth", dropout.over_depth, in_blocks),
    ):
        if value != "constant" and not has_effect:
            raise ValueError(
                f"{name}={value!r} is not allowed: it must be 'constant' where every dropout rate "
                "that it changes is 0. Set a rate, such as --dropout 0.2."
            )


def describe_dropout(config: Config) -> str:
    """The sites that drop with their rates, and how these change over depth and steps."""
    dropout = config.model.dropout
    sites = {name: rate for name, rate in dropout.rates.items() if rate}
    if not sites:
        return "none (--dropout sets a rate)"
    parts = [str(sites)]
    if dropout.over_depth == "linear":
        parts.append("growing from 0 over the blocks")
    if config.dropout_schedule != "constant":
        length = config.dropout_schedule_steps or default_length(config)
        words = {
            "linear": f"falling to 0 at step {length}",
            "early": f"up to step {length} only",
            "late": f"after step {length} only",
            "curriculum": f"approached as 1 - exp(-10 * step / {length})",
        }
        parts.append(words[config.dropout_schedule])
    return ", ".join(parts)
