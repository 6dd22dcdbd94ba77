"""Elementwise dropout: each element, or each slice that shares one decision, drops by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dropout_jax import _apply, _checks, masks

if TYPE_CHECKING:
    from jaxtyping import Array, Inexact


def dropout(x, rate, *, key, broadcast_dims=()) -> Inexact[Array, ...]:
    """Drop elements of `x` with probability `rate` and scale the rest, so the expectation is `x`.

    Formula: y = x * 2^16 / T with probability T / 2^16, else 0; T = rint((1 - rate) * 2^16).
    Mean x, variance x^2 (2^16 - T) / T, which is x^2 rate / (1 - rate) to the mask's resolution.

    Args:
      x: a floating or complex array of any shape.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not. The
        resolution is 2^-16: a rate below 2^-17 is 0.
      key: one PRNG key, typed or raw: training. None: evaluation, `x` comes back as it was.
      broadcast_dims: axes along which one decision is shared; negative numbers count from the last.

    Returns:
      An array of the shape and dtype of `x`. A dropped NaN or infinity is 0. The product is
      computed in float32 (float64 for float64) and rounded once; a float16 that overflows when
      scaled is inf, as in any product. Rate 0 is the identity; rate 1 gives zeros with zero
      gradients; a traced rate outside [0, 1] gives NaN. No gradient flows to `rate`. The backward
      pass keeps one bit an element.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Srivastava et al., JMLR 2014, in the inverted form; `dropout_jax.masks` for the mask.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import dropout
      >>> dropout(jnp.ones((2, 4)), 0.5, key=jax.random.key(0))
      Array([[2., 2., 0., 0.],
             [2., 2., 2., 0.]], dtype=float32)
      >>> dropout(jnp.ones(3), 0.5, key=None)
      Array([1., 1., 1.], dtype=float32)
    """
    x = _checks.array(x)
    rate = _checks.rate(rate)
    shape = masks.mask_shape(x.shape, broadcast_dims)
    key = _checks.key(key)
    return x if key is None else _apply.drop(x, rate, key, shape)
