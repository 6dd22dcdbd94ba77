"""The classifier: the body of a GPT, and a head (dropout, dense, GELU, dropout, dense).

Rows are padded on the right. Attention is causal, so no real token attends to padding, and the head
reads the features of real tokens only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from dropout_jax import dropout, fold
from minigpt.config import ModelConfig
from minigpt.model import GPT

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Array, Float, Integer


class Classifier(nnx.Module):
    """Padded tokens and their lengths to logits of the classes."""

    def __init__(
        self, config: ModelConfig, vocab_size: int, classes: int, pool: str, *, key: jax.Array
    ):
        self.pool, self.rate = pool, 0.0
        self.body = GPT(config, vocab_size, rngs=nnx.Rngs(fold(key, "body")))
        self.head = Head(config.n_embd, classes, rngs=nnx.Rngs(fold(key, "head")))

    def __call__(
        self,
        tokens: Integer[Array | np.ndarray, "batch time"],
        lengths: Integer[Array | np.ndarray, " batch"],
        *,
        key: jax.Array | None,
        rate: float | jax.Array | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; `key=None` is evaluation. A `rate`, traced or not, replaces the head's rate."""
        features = self.body.features(jnp.asarray(tokens), key=fold(key, "body")).astype(
            jnp.float32
        )
        rate = self.rate if rate is None else rate
        return self.head(
            pool_features(features, jnp.asarray(lengths, jnp.int32), self.pool),
            rate,
            key=fold(key, "head"),
        )


class Head(nnx.Module):
    """Dropout, dense, GELU, dropout, dense."""

    def __init__(self, dim: int, classes: int, *, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)  # the initial probabilities are nearly uniform
        self.hidden = nnx.Linear(dim, dim, rngs=rngs)
        self.out = nnx.Linear(dim, classes, kernel_init=small, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch dim"], rate: float | jax.Array, *, key: jax.Array | None
    ) -> Float[Array, "batch classes"]:
        """Logits; the rate may be traced."""
        x = self.hidden(dropout(x, rate, key=fold(key, "input")))
        return self.out(dropout(nnx.gelu(x), rate, key=fold(key, "hidden")))


def pool_features(
    features: Float[Array, "batch time dim"],
    lengths: Integer[Array | np.ndarray, " batch"],
    pool: str,
) -> Float[Array, "batch dim"]:
    """The features of the last or the first real token, or their mean over the real tokens."""
    if pool == "first":
        return features[:, 0]
    if pool == "last":
        return jnp.take_along_axis(features, lengths[:, None, None] - 1, axis=1)[:, 0]
    is_real = jnp.arange(features.shape[1]) < lengths[:, None]
    total = jnp.where(is_real[..., None], features, 0).sum(axis=1)
    return total / lengths[:, None].astype(total.dtype)
