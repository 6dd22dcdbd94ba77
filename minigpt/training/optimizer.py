"""The optimizer in optax: AdamW, a schedule with warm-up and cosine decay, gradient clipping."""

from __future__ import annotations

from typing import Any

import jax
import optax

from minigpt.config import Config, OptimConfig

_MATRICES = ("kernel", "embedding", "lora_a", "lora_b")


def learning_rate_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from learning_rate / (warmup_steps + 1), then a cosine to final_learning_rate.

    The cosine ends at step `steps`.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / (config.warmup_steps + 1),
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(steps, config.warmup_steps + 1),  # a run may be shorter than its warm-up
        end_value=config.final_learning_rate,
    )


def learning_rate_at(config: Config, step: int) -> float:
    """The learning rate of a step, from 0, with the schedule that the run had at this step.

    >>> config = Config(optim=OptimConfig(warmup_steps=0), steps=200, extended_from=((100, 100),))
    >>> [round(learning_rate_at(config, step), 5) for step in (0, 99, 100, 199)]
    [0.001, 0.0001, 0.00055, 0.0001]
    """
    rate: Any = learning_rate_schedule(config.optim, config.steps_at(step))(step)
    return float(rate)


def build_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW, with weight decay on matrices only."""
    adamw = optax.adamw(
        learning_rate_schedule(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=_is_matrix,
    )
    return optax.chain(optax.clip_by_global_norm(config.grad_clip), adamw)


def _is_matrix(params: Any) -> Any:
    """By name, not by dimensions: scan_layers adds an axis to every array."""

    def is_matrix(path: tuple[Any, ...], _: Any) -> bool:
        return any(getattr(key, "key", None) in _MATRICES for key in path)

    return jax.tree.map_with_path(is_matrix, params)
