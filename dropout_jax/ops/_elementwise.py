"""Elementwise dropout: each element, or each slice that shares a decision, drops independently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dropout_jax import _validation, random
from dropout_jax.ops import _apply

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32, Inexact, Key

# SELU's -lambda * alpha (Klambauer et al., 2017): the value of a dropped element.
ALPHA_PRIME = -1.7580993408473766


def dropout(
    x: ArrayLike,
    rate: ArrayLike,
    *,
    key: jax.Array | None,
    broadcast_dims: Sequence[int] = (),
    row_offset: ArrayLike | None = None,
) -> Inexact[Array, "..."]:
    """Drop elements of `x` with probability `rate` and scale the rest, so the expectation is `x`.

    Formula: y = x / (1 - rate) with probability 1 - rate, else 0. Mean x, variance
    x^2 rate / (1 - rate).

    Args:
      x: a floating or complex array of any shape.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not. It
        is rounded to float32, and one of at most 2^-25 drops nothing.
      key: one PRNG key, typed or raw: training. None: evaluation, returns `x` unchanged.
      broadcast_dims: axes along which one decision is shared; negative numbers count from the last.
      row_offset: the index, along axis 0 of a larger array, of the first row of `x`; an integer,
        traced or not. A part of a batch then has its part of the mask of the batch.

    Returns:
      An array of the shape and dtype of `x`. A dropped NaN or infinity is 0. The product is
      computed in float32 (float64 for float64) and rounded once; a float16 that overflows when
      scaled is inf, as in any product. Rate 0 is the identity; rate 1 gives zeros with zero
      gradients; a traced rate outside [0, 1] gives NaN. No gradient flows to `rate`. The backward
      pass keeps one bit an element.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Srivastava et al., JMLR 2014, in the inverted form; `dropout_jax.random` for the mask.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import dropout
      >>> dropout(jnp.ones((2, 4)), 0.5, key=jax.random.key(0))
      Array([[2., 2., 0., 0.],
             [2., 2., 2., 0.]], dtype=float32)
      >>> dropout(jnp.ones(3), 0.5, key=None)
      Array([1., 1., 1.], dtype=float32)
    """
    x = _validation.check_array(x)
    rate = _validation.check_rate(rate)
    shared_axes = _validation.check_axes(broadcast_dims, x.ndim)
    shape = random.mask_shape(x.shape, shared_axes)
    offset = random.check_row_offset(row_offset, x.shape, shared_axes)
    return _apply.drop(x, rate, _validation.check_key(key), shape, offset)


def dropout_unscaled(
    x: ArrayLike, rate: ArrayLike, *, key: jax.Array | None
) -> Inexact[Array, "..."]:
    """Drop without scaling in training, and multiply by the kept share at evaluation.

    Formula: y = x with probability 1 - rate, else 0; at evaluation y = x (1 - rate). Mean
    x (1 - rate) and variance x^2 rate (1 - rate).

    Args:
      x: a floating or complex array of any shape.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, which here is a multiplication.

    Returns:
      An array of the shape and dtype of `x`. Gradients, edges and precision as in `dropout`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Srivastava et al., JMLR 2014, the original form; `dropout` is the inverted one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import dropout_unscaled
      >>> dropout_unscaled(jnp.ones(4), 0.5, key=jax.random.key(0))
      Array([1., 1., 0., 0.], dtype=float32)
      >>> dropout_unscaled(jnp.ones(4), 0.25, key=None)
      Array([0.75, 0.75, 0.75, 0.75], dtype=float32)
    """
    x = _validation.check_array(x)
    rate = _validation.check_rate(rate)
    key = _validation.check_key(key)
    if _apply.keeps_everything(rate):
        return x
    if key is None:
        return _apply.with_type_of(x, _expected_share)(x, random.rate_array(rate))
    return _apply.with_mask(_apply.select_unscaled, (x,), rate, key, x.shape)


@jax.jit
def _expected_share(
    x: Inexact[Array, "*shape"], rate: Float32[Array, ""]
) -> Inexact[Array, "*shape"]:
    rate = jax.lax.stop_gradient(rate)
    share = _apply.compute_kept_share(rate, _apply.compute_dtype(x))
    mean = _apply.scale_array(x, _apply.nan_if_invalid_rate(rate, share))
    return jnp.where(share == 0, jnp.zeros_like(mean), mean)  # at rate 1 an infinity is 0, not NaN


def alpha_dropout(
    x: ArrayLike,
    rate: ArrayLike,
    *,
    key: jax.Array | None,
    broadcast_dims: Sequence[int] = (),
) -> Float[Array, "..."]:
    """Drop to the saturation value of SELU, and rescale to keep mean 0 and variance 1.

    Formula: y = a x + b with probability q, else a alpha' + b, where q = 1 - rate,
    alpha' = -1.7580993408473766, a = (q + alpha'^2 q (1 - q))^(-1/2), b = -a alpha' (1 - q).
    Mean a q x (since a alpha' (1 - q) + b = 0) and variance a^2 q (1 - q) (x - alpha')^2.

    Args:
      x: a floating array of any shape, with mean 0 and variance 1 for the output to have them.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, returns `x` unchanged.
      broadcast_dims: axes along which one decision is shared; all but (batch, channel) give
        PyTorch's feature_alpha_dropout.

    Returns:
      An array of the shape and dtype of `x`. Rate 1 gives zeros, as PyTorch does (a has no limit).
      Gradients, edges and precision otherwise as in `dropout`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Klambauer et al., "Self-normalizing neural networks", NeurIPS 2017.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import alpha_dropout
      >>> alpha_dropout(jnp.zeros(3, jnp.float16), 0.5, key=jax.random.key(0))
      Array([ 0.7793,  0.7793, -0.7793], dtype=float16)
    """
    x = _validation.check_real_array(x)
    rate = _validation.check_rate(rate)
    shape = random.mask_shape(x.shape, _validation.check_axes(broadcast_dims, x.ndim))
    key = _validation.check_key(key)
    if key is None or _apply.keeps_everything(rate):
        return x
    return _apply.with_mask(_select_alpha, (x,), rate, key, shape)


def _select_alpha(
    x: Float[Array, "*shape"], keep: Bool[Array, "*#shape"], rate: Float32[Array, ""]
) -> Float[Array, "*shape"]:
    kept = _apply.compute_kept_share(rate, _apply.compute_dtype(x))
    positive = jnp.where(kept > 0, kept, 1)
    a = 1 / jnp.sqrt(positive * (1 + ALPHA_PRIME**2 * (1 - positive)))
    b = -a * ALPHA_PRIME * (1 - positive)
    filled = jnp.where(keep, x.astype(kept.dtype), ALPHA_PRIME)
    corrected = jnp.where(kept > 0, a * filled + b, 0)
    return _apply.nan_if_invalid_rate(rate, corrected).astype(x.dtype)


def gaussian_dropout(
    x: ArrayLike, rate: ArrayLike, *, key: jax.Array | None
) -> Float[Array, "..."]:
    """Multiply by Gaussian noise of mean 1 whose variance is that of `dropout`.

    Formula: y = x (1 + sqrt(rate / (1 - rate)) e), e standard normal (`dropout_jax.random`). Mean
    x, variance x^2 rate / (1 - rate).

    Args:
      x: a floating array of any shape.
      rate: the dropout rate of the same variance, in [0, 1]; a number or a scalar array, traced or
        not. Rate 1, where the variance has no limit, gives zeros, as in every op.
      key: one PRNG key: training. None: evaluation, returns `x` unchanged.

    Returns:
      An array of the shape and dtype of `x`, computed in float32 (float64 for float64). A traced
      rate outside [0, 1] gives NaN. No gradient flows to `rate`. The backward pass keeps nothing
      and draws the noise again from the key. Cost: five times `dropout`, since each element takes a
      word of its own and an inverse error function.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Srivastava et al., JMLR 2014, section 10.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import gaussian_dropout
      >>> y = gaussian_dropout(jnp.ones(10_000), 0.2, key=jax.random.key(0))
      >>> round(float(y.mean()), 1), round(float(y.var()), 2)
      (1.0, 0.25)
    """
    x = _validation.check_real_array(x)
    rate = _validation.check_rate(rate)
    key = _validation.check_key(key)
    if key is None:
        return x
    return _apply.with_type_of(x, _gaussian)(x, random.rate_array(rate), key)


@jax.jit
@jax.checkpoint
def _gaussian(
    x: Float[Array, "*shape"], rate: Float32[Array, ""], key: Key[Array, ""]
) -> Float[Array, "*shape"]:
    rate = jax.lax.stop_gradient(rate)
    dtype = _apply.compute_dtype(x)
    below_one = jnp.where(rate < 1, rate, 0)
    deviation = jnp.where(rate < 1, jnp.sqrt(below_one / (1 - below_one)), 0).astype(dtype)
    factor = jnp.where(rate < 1, 1 + deviation * random.draw_normal(key, x.shape).astype(dtype), 0)
    factor = _apply.nan_if_invalid_rate(rate, factor)
    return jnp.where(factor == 0, jnp.zeros_like(x), _apply.scale_array(x, factor))


def masked_dropout(
    x: ArrayLike, rate: ArrayLike, where: ArrayLike, *, key: jax.Array | None
) -> Inexact[Array, "..."]:
    """Apply dropout outside padding; padding is neither dropped nor scaled.

    Formula: y = dropout(x, rate, key=key) where `where`, else x, NaN included. The mask is that of
    `dropout` on the whole array, so padding changes no other element.

    Args:
      x: a floating or complex array of any shape.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      where: a bool array, False at padding, that broadcasts to the shape of `x`.
      key: one PRNG key: training. None: evaluation, returns `x` unchanged.

    Returns:
      An array of the shape and dtype of `x`. Gradients pass padding unchanged; edges and precision
      as in `dropout`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: `dropout`, for sequences of unequal length in one batch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import masked_dropout
      >>> x = jnp.array([1.0, 1.0, 1.0, jnp.nan])
      >>> masked_dropout(x, 0.5, jnp.array([True, True, True, False]), key=jax.random.key(0))
      Array([ 2.,  2.,  0., nan], dtype=float32)
    """
    x = _validation.check_array(x)
    rate = _validation.check_rate(rate)
    where = _validation.check_mask(where, x.shape, "where")
    key = _validation.check_key(key)
    if key is None or _apply.keeps_everything(rate):
        return x
    return _apply.with_mask(_select_where, (x, where), rate, key, x.shape)


def _select_where(
    x: Inexact[Array, "*shape"],
    where: Bool[Array, "*#shape"],
    keep: Bool[Array, "*#shape"],
    rate: Float32[Array, ""],
) -> Inexact[Array, "*shape"]:
    # Padding is set to 0 before the scaling, so that no NaN in it enters the gradient.
    inside = jnp.where(where, x, jnp.zeros_like(x))
    return jnp.where(where, _apply.select_and_scale(inside, keep, rate), x)
