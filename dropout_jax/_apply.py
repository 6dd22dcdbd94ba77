"""Select and scale: what every dropping op does with a mask."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from dropout_jax import _checks, masks

if TYPE_CHECKING:
    from jaxtyping import Array, Inexact


def apply_mask(x, keep, rate) -> Inexact[Array, ...]:
    """Zero what a mask drops and scale what it keeps: a mask from anywhere can be used.

    Formula: y = x * 2^16 / T where keep, else 0, with T = rint((1 - rate) * 2^16) (and 0 everywhere
    at rate 1). `dropout(x, rate, key=key)` is `apply_mask(x, keep_mask(key, rate, x.shape), rate)`.

    Args:
      x: a floating or complex array of any shape.
      keep: a bool array, True is kept, that broadcasts to the shape of `x`.
      rate: the rate the mask was drawn with, in [0, 1]; it only scales. Traced or not.

    Returns:
      An array of the shape and dtype of `x`. A dropped NaN or infinity is 0. The product is
      computed in float32 (float64 for float64) and rounded to the dtype once, so a float16 that
      overflows when scaled is inf, as in any product. No gradient flows to `rate`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting",
      JMLR 2014, in the inverted form.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax import apply_mask
      >>> apply_mask(jnp.array([1.0, 2.0, 3.0]), jnp.array([True, False, True]), 0.5)
      Array([2., 0., 6.], dtype=float32)
    """
    x = _checks.array(x)
    keep = _checks.mask(keep, x.shape)
    rate = jnp.float32(_checks.rate(rate))
    return _in_sharding_of(x, select)(x, keep, rate)


def drop(x, rate, key, mask_shape: tuple[int, ...]) -> Inexact[Array, ...]:
    """Draw the mask of `mask_shape` (which broadcasts to x) and apply it; arguments are checked."""
    if not isinstance(rate, jax.Array) and rate < 2.0**-17:
        return x  # T = 2^16: everything is kept and nothing is scaled
    fn = functools.partial(_drop, mask_shape=mask_shape)
    return _in_sharding_of(x, fn)(x, jnp.float32(rate), key)


@functools.partial(jax.jit, static_argnames="mask_shape")
def _drop(x, rate, key, *, mask_shape):
    words = masks.packed_mask(key, rate, mask_shape)

    # The checkpoint makes the words, one bit an element, the only residual of the backward pass:
    # they are unpacked again there instead of keeping the bool mask, a byte an element.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def unpack_and_select(x, words, rate):
        return select(x, masks.unpack(words, mask_shape), rate)

    return unpack_and_select(x, words, rate)


@jax.jit
def select(x, keep, rate):
    """x * 2^16 / T where keep, else 0; computed in float32 or float64 and rounded once."""
    rate = lax.stop_gradient(rate)
    dtype = jnp.float64 if x.dtype in (jnp.float64, jnp.complex128) else jnp.float32
    threshold = masks.threshold(rate)
    # T = 0 drops everything; dividing by 1 instead keeps its gradients zero and not NaN.
    scale = masks.ONE / jnp.maximum(threshold, 1).astype(dtype)
    scale = jnp.where((rate >= 0) & (rate <= 1), scale, jnp.nan)
    keep = jnp.broadcast_to(keep & (threshold > 0), x.shape)
    return jnp.where(keep, _scaled(x, scale), jnp.zeros_like(x))


def _scaled(x, scale):
    if jnp.iscomplexobj(x):  # by parts: a complex product would turn inf into NaN
        return lax.complex(x.real * scale, x.imag * scale)
    return (x.astype(scale.dtype) * scale).astype(x.dtype)


def _in_sharding_of(x, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Let the compiler lay out what `fn` makes on the way, and give its result the sharding of x.

    Only explicit-sharding meshes need it: there every intermediate has a sharding in its type, and
    the mask's would be "replicated". Elsewhere `fn` is returned as it is.
    """
    sharding = jax.typeof(x).sharding
    if jax.sharding.AxisType.Explicit not in sharding.mesh.axis_types:
        return fn
    return jax.sharding.auto_axes(fn, out_sharding=sharding)
