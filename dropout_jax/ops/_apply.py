"""Select and scale: what the ops do with a mask, its gradients and its place on a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dropout_jax import _validation, random

if TYPE_CHECKING:
    from jaxtyping import Array, Inexact


def apply_mask(x, keep, rate=None, *, scale=None) -> Inexact[Array, "..."]:
    """Zero what a mask drops and scale what it keeps: a mask from anywhere can be used.

    Formula: y = x * 2^16 / T where keep, else 0, with T = rint((1 - rate) * 2^16) (and 0 everywhere
    at rate 1). `dropout(x, rate, key=key)` is `apply_mask(x, keep_mask(key, rate, x.shape), rate)`.

    Args:
      x: a floating or complex array of any shape.
      keep: a bool array, True is kept, that broadcasts to the shape of `x`.
      rate: the rate the mask was drawn with, in [0, 1]; it only scales. Traced or not.
      scale: instead of a rate, the factor of what is kept: a number or a scalar floating array.
        Other frameworks have 1 / (1 - rate), which for their masks is right to the last bit.

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
    x = _validation.array(x)
    keep = _validation.mask(keep, x.shape)
    if scale is not None:
        if rate is not None:
            remedy = "Leave the rate out: it would only scale."
            _validation.fail(TypeError, "scale", scale, "given instead of a rate", remedy)
        exact = np.float64(scale) if isinstance(scale, float) else scale
        scale = _validation.scalar(exact, "scale").astype(compute_dtype(x))
        return in_sharding_of(x, select_scaled)(keep, x, scale)
    rate = jnp.float32(_validation.rate(rate))
    return in_sharding_of(x, select_and_scale)(x, keep, rate)


def drop(x, rate, key, mask_shape: tuple[int, ...], start=None) -> Inexact[Array, "..."]:
    """Inverted dropout with a mask of `mask_shape`, which broadcasts to x; x at evaluation."""
    if key is None or keeps_everything(rate):
        return x
    return with_mask(select_and_scale, (x,), rate, key, mask_shape, start)


def keeps_everything(rate) -> bool:
    """Whether the rate is known and T = 2^16: nothing is dropped and nothing is scaled."""
    return not isinstance(rate, jax.Array) and rate <= 2.0**-17


def with_mask(
    fn: Callable, operands: tuple, rate, key, mask_shape: tuple[int, ...], start=None
) -> Any:
    """fn(*operands, keep, rate) with a fresh mask of `mask_shape`; the first operand leads.

    `fn` is a module-level function (it is the key of a compilation cache) and may close over
    nothing but static values given by functools.partial.
    """
    call = functools.partial(_with_mask, fn=fn, mask_shape=mask_shape)
    return in_sharding_of(operands[0], call)(operands, jnp.float32(rate), key, start)


@functools.partial(jax.jit, static_argnames=("fn", "mask_shape"))
def _with_mask(operands, rate, key, start, *, fn, mask_shape):
    words = random.packed_mask(key, rate, mask_shape, start)

    # The checkpoint makes the words, one bit an element, the only residual of the backward pass
    # that the mask needs: they are unpacked again there instead of keeping a byte an element.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def unpack_and_apply(operands, words, rate):
        return fn(*operands, random.unpack(words, mask_shape), rate)

    return unpack_and_apply(operands, words, lax.stop_gradient(rate))


@jax.jit
def select_and_scale(x, keep, rate):
    """x * 2^16 / T where keep, else 0; computed in float32 or float64 and rounded once."""
    some = random.threshold(rate) > 0
    keep = (keep & some) | ~random.in_range(rate)  # all NaN, not some quiet zeros
    return select_scaled(keep, x, inverse_share(lax.stop_gradient(rate), compute_dtype(x)))


def select_unscaled(x, keep, rate):
    """x where keep, else 0."""
    one = nan_outside(rate, jnp.ones((), compute_dtype(x)))
    return select_scaled(keep, x, one)


def select_scaled(keep, x, scale):
    """x * scale where the mask, broadcast to the shape of x, keeps it, else 0.

    (Selected before it is rounded: a select of 16-bit numbers takes half as long again on a CPU.)
    """
    keep = jnp.broadcast_to(keep, x.shape)
    product = _product(x, scale)
    return jnp.where(keep, product, jnp.zeros_like(product)).astype(x.dtype)


def scaled(x, scale):
    """x * scale in the scale's precision, rounded to the dtype of x."""
    return _product(x, scale).astype(x.dtype)


def _product(x, scale):
    if jnp.iscomplexobj(x):  # by parts: a complex product would turn inf into NaN
        return lax.complex(x.real * scale, x.imag * scale)
    return x.astype(scale.dtype) * scale


def compute_dtype(x):
    """float64 for float64 and complex128, else float32."""
    return jnp.float64 if x.dtype in (jnp.float64, jnp.complex128) else jnp.float32


def widened(x):
    """x in float64 for float64, else in float32: sums over many examples stagnate in half."""
    return x.astype(compute_dtype(x))


def kept_share(rate, dtype):
    """The probability really used, T / 2^16, in a floating dtype."""
    return random.threshold(rate).astype(dtype) / random.ONE


def inverse_share(rate, dtype):
    """2^16 / T, 0 where T is 0, and NaN where a traced rate is outside [0, 1]."""
    threshold = random.threshold(rate).astype(dtype)
    inverse = random.ONE / jnp.maximum(threshold, 1)
    return nan_outside(rate, jnp.where(threshold > 0, inverse, 0))


def nan_outside(rate, value):
    """The value, or NaN where a traced rate is outside [0, 1]."""
    return jnp.where(random.in_range(rate), value, jnp.nan)


def in_sharding_of(x, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Let the compiler lay out what `fn` makes on the way, and give its result the sharding of x.

    Only explicit-sharding meshes need it: there every intermediate has a sharding in its type, and
    the mask's would be "replicated". Elsewhere `fn` is returned as it is.
    """
    sharding = jax.typeof(x).sharding
    if jax.sharding.AxisType.Explicit not in sharding.mesh.axis_types:
        return fn
    return jax.sharding.auto_axes(fn, out_sharding=sharding)
