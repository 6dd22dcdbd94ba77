"""From the config to optax: AdamW, warm-up and cosine, clipping."""

from __future__ import annotations

import jax
import optax

from minigpt.config import OptimConfig


def learning_rate_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear from learning_rate / (warmup + 1), then a cosine that ends at min_learning_rate."""
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / (config.warmup_steps + 1),
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(steps, config.warmup_steps + 1),  # a run may end within its warm-up
        end_value=config.min_learning_rate,
    )


def build_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW, with decay on matrices only."""
    adamw = optax.adamw(
        learning_rate_schedule(config, steps),
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
