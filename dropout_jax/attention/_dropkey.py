"""DropKey: drop attention logits before the softmax."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from dropout_jax import _validation, ops, random

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Key


def dropkey_bias(
    shape: Sequence[int],
    rate: ArrayLike,
    *,
    key: jax.Array | None,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "... keys"]:
    """Draw a bias that drops attention logits before the softmax, which then renormalises.

    Formula: -inf with probability rate, else 0, except that a row (the last axis) that would lose
    all its keys keeps all of them. Add it to the logits.

    Args:
      shape: the shape of the logits, such as (batch, heads, queries, keys); at least one axis.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, zeros.
      dtype: a floating dtype, that of the logits.

    Returns:
      An array of `shape` and `dtype`. Nothing is scaled: the softmax renormalises. At rate 1 every
      row would lose all its keys, so nothing is dropped. A traced rate outside [0, 1] gives NaN.
      Only whole rows are protected: under an additional causal or padding mask, a row may lose all
      the keys that it sees, so combine masks with care (row 0 of a causal mask sees one key).

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Li et al., "DropKey for vision transformer", CVPR 2023.

    Example:
      >>> import jax
      >>> from dropout_jax import dropkey_bias
      >>> dropkey_bias((2, 4), 0.5, key=jax.random.key(0))
      Array([[  0.,   0., -inf, -inf],
             [  0.,   0.,   0., -inf]], dtype=float32)
    """
    shape = _validation.check_shape(shape)
    if not shape:
        _validation.fail(
            ValueError, "shape", shape, "of at least 1 axis", "Pass the shape of the logits."
        )
    rate = _validation.check_rate(rate)
    dtype = _validation.check_floating_dtype(dtype, "dtype")
    key = _validation.check_key(key)
    if key is None:
        return _build_zeros(shape, dtype)
    return _draw_bias(key, random.rate_array(rate), shape=shape, dtype=dtype)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _build_zeros(shape: tuple[int, ...], dtype: np.dtype) -> Float[Array, "*shape"]:
    return jnp.zeros(shape, dtype)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _draw_bias(
    key: Key[Array, ""], rate: Float32[Array, ""], *, shape: tuple[int, ...], dtype: np.dtype
) -> Float[Array, "*shape"]:
    words = random.draw_packed_mask(random.mask_params(key, rate), shape)
    keep = random.unpack_mask(words, shape)
    keep = keep | ~keep.any(axis=-1, keepdims=True)
    bias = jnp.where(keep, jnp.zeros((), dtype), jnp.full((), -jnp.inf, dtype))
    return ops.nan_if_invalid_rate(rate, bias)
