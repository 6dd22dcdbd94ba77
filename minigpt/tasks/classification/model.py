"""The classifier: a GPT's body, and a head of dropout, dense, GELU, dropout, dense on one vector.

Rows are padded on the right, so attention, which is causal, never sees padding from a real token;
the head is given real tokens' vectors only.
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
    from jaxtyping import Array, Float, Int


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
        tokens: Int[Array, "batch time"],
        lengths: Int[Array, " batch"],
        *,
        key: jax.Array | None,
        rate: float | jax.Array | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; `key=None` evaluates. A `rate`, traced or not, is in the place of the head's."""
        features = self.body.features(tokens, key=fold(key, "body")).astype(jnp.float32)
        rate = self.rate if rate is None else rate
        return self.head(pool_features(features, lengths, self.pool), rate, key=fold(key, "head"))


class Head(nnx.Module):
    """Dropout, dense, GELU, dropout, dense."""

    def __init__(self, dim: int, classes: int, *, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)  # so that training begins with even probabilities
        self.hidden = nnx.Linear(dim, dim, rngs=rngs)
        self.out = nnx.Linear(dim, classes, kernel_init=small, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch dim"], rate: float | jax.Array, *, key: jax.Array | None
    ) -> Float[Array, "batch classes"]:
        """Logits; the rate may be traced."""
        x = self.hidden(dropout(x, rate, key=fold(key, "input")))
        return self.out(dropout(nnx.gelu(x), rate, key=fold(key, "hidden")))


def pool_features(
    features: Float[Array, "batch time dim"], lengths: Int[Array, " batch"], pool: str
) -> Float[Array, "batch dim"]:
    """The last or the first real token's vector, or the mean over the real tokens."""
    if pool == "first":
        return features[:, 0]
    if pool == "last":
        return jnp.take_along_axis(features, lengths[:, None, None] - 1, axis=1)[:, 0]
    real = jnp.arange(features.shape[1]) < lengths[:, None]
    total = jnp.where(real[..., None], features, 0).sum(axis=1)  # padding may hold anything
    return total / lengths[:, None].astype(total.dtype)
