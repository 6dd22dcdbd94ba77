"""Apply a mask: select, scale, keep few residuals, and follow the sharding of the input."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from dropout_jax import _validation, random
from dropout_jax.ops._weak_types import with_weak_type_of

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32, Inexact, Key, UInt32


def apply_mask(
    x: ArrayLike, keep: ArrayLike, rate: ArrayLike | None = None, *, scale: ArrayLike | None = None
) -> Inexact[Array, "..."]:
    """Zero what a mask drops and scale what it keeps; the mask may have any source.

    Formula: y = x / (1 - rate) where keep, else 0 (and 0 everywhere at rate 1).
    `dropout(x, rate, key=key)` is `apply_mask(x, keep_mask(key, rate, x.shape), rate)`.

    Args:
      x: a floating or complex array of any shape.
      keep: a bool array, True is kept, that broadcasts to the shape of `x`.
      rate: the rate the mask was drawn with, in [0, 1]; it only scales. Traced or not.
      scale: the factor of what is kept, instead of a rate: a number or a scalar floating array.

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
    x = _validation.check_array(x)
    keep = _validation.check_mask(keep, x.shape)
    if scale is not None:
        if rate is not None:
            remedy = "Omit the rate: its only effect is the scale."
            _validation.fail(TypeError, "scale", scale, "None if a rate is given", remedy)
        exact = np.float64(scale) if isinstance(scale, float) else scale
        scale = _validation.check_scalar(exact, "scale").astype(compute_dtype(x))
        return with_type_of(x, select_scaled)(keep, x, scale)
    rate = random.rate_array(_validation.check_rate(rate))
    return with_type_of(x, select_and_scale)(x, keep, rate)


def drop(
    x: Inexact[Array, "*shape"],
    rate: float | Float32[Array, ""],
    key: Key[Array, ""] | None,
    mask_shape: tuple[int, ...],
    row_offset: UInt32[Array, ""] | None = None,
) -> Inexact[Array, "*shape"]:
    """Apply inverted dropout with a mask of `mask_shape`, which broadcasts to x."""
    if key is None or keeps_everything(rate):
        return x
    return with_mask(select_and_scale, (x,), rate, key, mask_shape, row_offset)


def keeps_everything(rate: float | Float32[Array, ""]) -> bool:
    """Whether the rate is known and so small that nothing is dropped or scaled."""
    return not isinstance(rate, jax.Array) and rate <= 2.0**-25


def with_mask(
    fn: Callable,
    operands: tuple,
    rate: float | Float32[Array, ""],
    key: Key[Array, ""],
    mask_shape: tuple[int, ...],
    row_offset: UInt32[Array, ""] | None = None,
) -> Any:
    """Return fn(*operands, keep, rate) with a new mask of `mask_shape`.

    The result has the type of the first operand. `fn` is a key of the compilation cache: it is
    a module-level function, with no closure but static values bound by functools.partial.
    """
    lowest = random.lowest_bit(rate)
    call = functools.partial(_with_mask, fn=fn, mask_shape=mask_shape, lowest=lowest)
    return with_type_of(operands[0], call)(operands, random.rate_array(rate), key, row_offset)


@functools.partial(jax.jit, static_argnames=("fn", "mask_shape", "lowest"))
def _with_mask(
    operands: tuple,
    rate: Float32[Array, ""],
    key: Key[Array, ""],
    row_offset: UInt32[Array, ""] | None,
    *,
    fn: Callable,
    mask_shape: tuple[int, ...],
    lowest: int,
) -> Any:
    params = random.mask_params(key, rate)
    words = random.draw_packed_mask(params, mask_shape, row_offset, lowest=lowest)

    # With the checkpoint, the backward pass keeps only the words of the mask, one bit an element,
    # and unpacks them again. Without it, it would keep a byte an element.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def unpack_and_apply(operands, words, rate):
        return fn(*operands, random.unpack_mask(words, mask_shape), rate)

    return unpack_and_apply(operands, words, lax.stop_gradient(rate))


@jax.jit
def select_and_scale(
    x: Inexact[Array, "*shape"], keep: Bool[Array, "*#shape"], rate: Float32[Array, ""]
) -> Inexact[Array, "*shape"]:
    """Return x / (1 - rate) where keep, else 0; computed in float32 or float64, rounded once."""
    keep = (keep & (rate < 1)) | ~random.is_valid_rate(rate)  # NaN everywhere, and no zeros
    return select_scaled(keep, x, compute_keep_scale(rate, compute_dtype(x)))


def select_unscaled(
    x: Inexact[Array, "*shape"], keep: Bool[Array, "*#shape"], rate: Float32[Array, ""]
) -> Inexact[Array, "*shape"]:
    """Return x where keep, else 0."""
    one = nan_if_invalid_rate(rate, jnp.ones((), compute_dtype(x)))
    return select_scaled(keep, x, one)


def select_scaled(
    keep: Bool[Array, "*#shape"], x: Inexact[Array, "*shape"], scale: Float[Array, "*#shape"]
) -> Inexact[Array, "*shape"]:
    """Return x * scale where the mask, broadcast to the shape of x, keeps it, else 0.

    (The select comes before the rounding: on a CPU, a select of 16-bit numbers takes 1.5 times as
    long.)
    """
    keep = jnp.broadcast_to(keep, x.shape)
    product = _product(x, scale)
    return jnp.where(keep, product, jnp.zeros_like(product)).astype(x.dtype)


def scale_array(
    x: Inexact[Array, "*shape"], scale: Float[Array, "*#shape"]
) -> Inexact[Array, "*shape"]:
    """Multiply in the precision of the scale, and round to the dtype of x."""
    return _product(x, scale).astype(x.dtype)


def _product(
    x: Inexact[Array, "*shape"], scale: Float[Array, "*#shape"]
) -> Inexact[Array, "*shape"]:
    if jnp.iscomplexobj(x):  # real and imaginary: a complex product gives NaN for inf
        return lax.complex(x.real * scale, x.imag * scale)
    return x.astype(scale.dtype) * scale


def compute_dtype(x: Inexact[Array, "..."]) -> DTypeLike:
    """Return the dtype of the arithmetic: float64 for float64 and complex128, else float32."""
    return jnp.float64 if x.dtype in (jnp.float64, jnp.complex128) else jnp.float32


def widen(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Convert to float64 for float64, else to float32; long sums stagnate in half precision."""
    return x.astype(compute_dtype(x))


def compute_kept_share(rate: Float32[Array, ""], dtype: DTypeLike) -> Float[Array, ""]:
    """Compute 1 - rate in float32, which is the exact probability of keeping, T / 2^32."""
    return (1 - lax.stop_gradient(rate)).astype(dtype)


def compute_keep_scale(rate: Float32[Array, ""], dtype: DTypeLike) -> Float[Array, ""]:
    """Compute 1 / (1 - rate), 0 at rate 1, and NaN where a traced rate is outside [0, 1]."""
    share = compute_kept_share(rate, dtype)
    inverse = 1 / jnp.where(share > 0, share, 1)
    return nan_if_invalid_rate(rate, jnp.where(share > 0, inverse, 0))


def nan_if_invalid_rate(
    rate: Float32[Array, ""], value: Inexact[Array, "*shape"]
) -> Inexact[Array, "*shape"]:
    """Return the value, or NaN where a traced rate is outside [0, 1]."""
    if not isinstance(rate, Tracer):  # under jax.disable_jit: it has been checked
        return value
    return nan_unless(random.is_valid_rate(rate), value)


def nan_unless(
    is_valid: Bool[Array, "*#shape"], value: Inexact[Array, "*shape"]
) -> Inexact[Array, "*shape"]:
    """Return the value, or NaN where it is not valid.

    (jax.debug_nans with jax.disable_jit refuses a constant NaN, so this one is a root of -1.)
    """
    nan = jnp.sqrt(jnp.where(is_valid, jnp.float32(0), jnp.float32(-1)))
    return jnp.where(is_valid, value, nan.astype(value.dtype))


def with_type_of(x: jax.Array, fn: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Give the result of `fn` the sharding and the weak type of x.

    The compiler chooses the shardings inside `fn`. Only meshes with explicit sharding need that:
    there every intermediate has a sharding in its type, and the mask's would be "replicated".
    """
    sharding = jax.typeof(x).sharding
    call = _with_auto_axes(fn, sharding.mesh, sharding)
    return lambda *args: with_weak_type_of(x, call(*args))


def with_shardings_of(arrays: Sequence[jax.Array], fn: Callable[..., Any]) -> Callable[..., Any]:
    """Give the results of `fn` the shardings of arrays, if those are explicit."""
    shardings = tuple(jax.typeof(x).sharding for x in arrays)
    return _with_auto_axes(fn, shardings[0].mesh, shardings)


def with_replicated_result(x: jax.Array, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Give the result of `fn` to every device of the mesh of x, if its sharding is explicit."""
    mesh = jax.typeof(x).sharding.mesh
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return _with_auto_axes(fn, mesh, replicated)


def _with_auto_axes(fn: Callable[..., Any], mesh: Any, shardings: Any) -> Callable[..., Any]:
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return fn
    return jax.sharding.auto_axes(fn, out_sharding=shardings)
