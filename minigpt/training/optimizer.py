"""From the config to optax: AdamW, warm-up and cosine, clipping."""

from __future__ import annotations

import jax
import optax

from minigpt.config import OptimConfig


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear from learning_rate / (warmup + 1), then a cosine that ends at min_learning_rate."""
    first = config.learning_rate / (config.warmup_steps + 1)
    warmup = optax.linear_schedule(first, config.learning_rate, config.warmup_steps)
    cosine = optax.cosine_decay_schedule(
        config.learning_rate,
        max(steps - config.warmup_steps, 1),  # a run may end within its warm-up
        alpha=config.min_learning_rate / config.learning_rate,
    )
    return optax.join_schedules([warmup, cosine], [config.warmup_steps])


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW, with decay on matrices only."""
    adamw = optax.adamw(
        schedule(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=_is_matrix,
    )
    return optax.chain(optax.clip_by_global_norm(config.grad_clip), adamw)


def _is_matrix(params):
    """By name: a scan over layers gives every array an axis more."""

    def decays(path, _):
        return any(getattr(key, "key", None) in ("kernel", "embedding") for key in path)

    return jax.tree.map_with_path(decays, params)
