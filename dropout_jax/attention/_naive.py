"""Attention by its formula, with all weights in memory: the implementation to read first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from dropout_jax import ops, random
from dropout_jax.attention._inputs import Dropout, Inputs, StaticMask, compute_visibility
from dropout_jax.attention._products import multiply

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def attend(
    inputs: Inputs, scale: float, static_mask: StaticMask, dropout: Dropout | None
) -> tuple[Float[Array, "batch queries heads dim"], Float[Array, "batch queries heads"]]:
    """Compute attention and the log-sum-exp of its logits; `dropout` of None is evaluation."""
    query, key, value, bias, mask_arrays = inputs
    batch, queries, heads, dim = query.shape
    _, keys, key_heads, _ = key.shape
    grouped = query.reshape(batch, queries, key_heads, heads // key_heads, dim)
    wide = ops.compute_dtype(query)
    logits = multiply("btkgd,bskd->bkgts", grouped, key) * scale
    logits = logits.reshape(batch, heads, queries, keys)
    if bias is not None:
        logits = logits + bias.astype(wide)
    rows, columns = (jnp.arange(count, dtype=jnp.int32) for count in (queries, keys))
    visibility = compute_visibility(static_mask, mask_arrays, rows, columns, 4)
    if visibility is not None:
        logits = jnp.where(visibility, logits, -jnp.inf)
    weights, log_sum = softmax(logits)
    keep_scale = 1
    if dropout is not None:
        # The scale comes after the product with the value: float16 weights might overflow.
        weights = ops.with_mask(
            ops.select_unscaled,
            (weights,),
            dropout.rate,
            dropout.key,
            random.mask_shape(weights.shape, dropout.broadcast_dims),
            dropout.row_offset,
        )
        keep_scale = ops.compute_keep_scale(dropout.rate, wide)
    weights = weights.astype(value.dtype).reshape(batch, key_heads, -1, queries, keys)
    out = multiply("bkgts,bskd->btkgd", weights, value)
    out = (out * keep_scale).astype(value.dtype).reshape(query.shape)
    return out, jnp.moveaxis(log_sum, 1, 2)


def softmax(
    logits: Float[Array, "*rows keys"],
) -> tuple[Float[Array, "*rows keys"], Float[Array, "*rows"]]:
    """Compute the softmax over keys, zeros in a row that sees none (logits all -inf), and its sum.

    The sum is the logarithm of the sum of exp(logits).
    """
    top = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf))
    top = jnp.where(top == -jnp.inf, 0, top)
    weights = jnp.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True)
    sees_none = total == 0
    total = jnp.where(sees_none, 1, total)
    log_sum = jnp.where(sees_none, -jnp.inf, jnp.log(total) + top)
    return weights / total, log_sum[..., 0]
