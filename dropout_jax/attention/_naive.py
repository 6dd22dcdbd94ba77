"""Attention as its formula says it, with all the weights in memory: the one to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from dropout_jax import ops
from dropout_jax.attention._inputs import Inputs, Reach, visible

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def attention(inputs: Inputs, scale: float, reach: Reach, dropout) -> Float[Array, "..."]:
    """Attention with dropout (key, rate, start) or None; the result has the shape of the query."""
    query, key, value, bias, hidden = inputs
    batch, queries, heads, dim = query.shape
    _, keys, key_heads, _ = key.shape
    grouped = query.reshape(batch, queries, key_heads, heads // key_heads, dim)
    wide = ops.compute_dtype(query)
    logits = jnp.einsum("btkgd,bskd->bkgts", grouped, key, preferred_element_type=wide) * scale
    logits = logits.reshape(batch, heads, queries, keys)
    if bias is not None:
        logits = logits + bias.astype(wide)
    positions = (jnp.arange(count, dtype=jnp.int32) for count in (queries, keys))
    seen = visible(reach, hidden, *positions)
    if seen is not None:
        logits = jnp.where(seen, logits, -jnp.inf)
    weights = softmax(logits)
    inverse = 1
    if dropout is not None:
        dropout_key, rate, start = dropout
        drop = ops.select_unscaled  # scaled after the product: float16 weights might overflow
        weights = ops.with_mask(drop, (weights,), rate, dropout_key, weights.shape, start)
        inverse = ops.inverse_share(rate, wide)
    weights = weights.astype(value.dtype).reshape(batch, key_heads, -1, queries, keys)
    out = jnp.einsum("bkgts,bskd->btkgd", weights, value, preferred_element_type=wide)
    return (out * inverse).astype(value.dtype).reshape(query.shape)


def softmax(logits: Float[Array, "*rows keys"]) -> Float[Array, "*rows keys"]:
    """The softmax over keys, and zeros in a row that sees none: its logits are all -inf."""
    top = jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf)
    weights = jnp.exp(logits - jnp.where(top == -jnp.inf, 0, lax.stop_gradient(top)))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)
