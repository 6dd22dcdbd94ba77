"""Drop paths: residual branches, connections, state updates and whole layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from dropout_jax import _validation, random
from dropout_jax.ops import _apply
from dropout_jax.ops._weak_types import with_weak_type_of

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32, Inexact, Key


def drop_path(
    x: ArrayLike,
    rate: ArrayLike,
    *,
    key: jax.Array | None,
    mode: str = "row",
    scale: bool = True,
    row_offset: ArrayLike | None = None,
) -> Inexact[Array, "..."]:
    """Drop a residual branch (stochastic depth), for a row of the batch or for the whole batch.

    Formula: `dropout` with one decision for each row (axis 0), or one for all. Within a row the
    covariance of two elements is x_i x_j rate / (1 - rate).

    Args:
      x: the branch's output, a floating or complex array with the batch first.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, returns `x` unchanged.
      mode: "row", a decision for each row; or "batch", one for the whole array.
      scale: whether kept rows are scaled, as in `dropout`. The original does not scale, and
        multiplies by 1 - rate at evaluation: for that, multiply at evaluation yourself.
      row_offset: the index, along axis 0 of a larger array, of the first row of `x`; an integer,
        traced or not. A part of a batch then has its part of the mask of the batch.

    Returns:
      An array of the shape and dtype of `x`; gradients, edges and precision as in `dropout`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Huang et al., "Deep networks with stochastic depth", ECCV 2016; Larsson et al.,
      "FractalNet", ICLR 2017; timm's DropPath and torchvision's StochasticDepth.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import drop_path
      >>> drop_path(jnp.ones((3, 2)), 0.5, key=jax.random.key(0))
      Array([[2., 2.],
             [2., 2.],
             [0., 0.]], dtype=float32)
    """
    x = _validation.check_array(x)
    rate = _validation.check_rate(rate)
    mode = _validation.check_choice(mode, "mode", ("row", "batch"))
    if mode == "row":
        _validation.check_min_ndim(x, 1, "x")
    key = _validation.check_key(key)
    shape = tuple(size if axis == 0 and mode == "row" else 1 for axis, size in enumerate(x.shape))
    offset = random.check_row_offset(row_offset, shape, () if mode == "row" else (0,))
    if scale or key is None or _apply.keeps_everything(rate):
        return _apply.drop(x, rate, key, shape, offset)
    return _apply.with_mask(_apply.select_unscaled, (x,), rate, key, shape, offset)


def drop_connect(
    weights: ArrayLike, rate: ArrayLike, *, key: jax.Array | None
) -> Inexact[Array, "..."]:
    """Drop weights instead of activations; each connection drops independently.

    Formula: `dropout` of the weights. The variance of (W v)_i is
    rate / (1 - rate) sum_j W_ij^2 v_j^2.

    Args:
      weights: a floating or complex array of any shape.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, returns `weights` unchanged.

    Returns:
      An array of the shape and dtype of `weights`; gradients, edges and precision as in `dropout`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Wan et al., "Regularization of neural networks using DropConnect", ICML 2013. Differs
      from it: one mask for the whole batch, inverted scaling, and evaluation with the mean weights.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import drop_connect
      >>> drop_connect(jnp.ones((2, 4)), 0.5, key=jax.random.key(0)) @ jnp.ones(4)
      Array([4., 6.], dtype=float32)
    """
    weights = _validation.check_array(weights, "weights")
    return _apply.drop(
        weights, _validation.check_rate(rate), _validation.check_key(key), weights.shape
    )


def zoneout(
    new: ArrayLike, old: ArrayLike, rate: ArrayLike, *, key: jax.Array | None
) -> Inexact[Array, "..."]:
    """Keep the previous state instead of the new one, unit by unit.

    Formula: y = old with probability rate, else new; at evaluation the expectation,
    y = (1 - rate) new + rate old. Variance rate (1 - rate) (new - old)^2.

    Args:
      new: the state after a step, a floating or complex array of any shape.
      old: the state before it, of the same shape and dtype.
      rate: the probability of keeping the old state, in [0, 1]; a number or a scalar array.
      key: one PRNG key: training. None: evaluation, the expectation.

    Returns:
      An array of the shape and dtype of `new`. Nothing is scaled. Gradients flow to both states.
      Rate 0 gives `new` and rate 1 `old`; a traced rate outside [0, 1] gives NaN.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations",
      ICLR 2017.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import zoneout
      >>> zoneout(jnp.ones(4), jnp.zeros(4), 0.5, key=jax.random.key(0))
      Array([1., 1., 0., 0.], dtype=float32)
      >>> zoneout(jnp.ones(2), jnp.zeros(2), 0.25, key=None)
      Array([0.75, 0.75], dtype=float32)
    """
    new, old = _validation.check_array(new, "new"), _validation.check_array(old, "old")
    _validation.check_same_shape_and_dtype(old, new, "old", "new")
    rate = _validation.check_rate(rate)
    key = _validation.check_key(key)
    if _apply.keeps_everything(rate):
        return new
    if key is None:
        return _apply.with_type_of(new, _compute_expected_state)(new, old, random.rate_array(rate))
    return _apply.with_mask(_select_state, (new, old), rate, key, new.shape)


def _select_state(
    new: Inexact[Array, "*shape"],
    old: Inexact[Array, "*shape"],
    keep: Bool[Array, "*#shape"],
    rate: Float32[Array, ""],
) -> Inexact[Array, "*shape"]:
    return _apply.nan_if_invalid_rate(rate, jnp.where(keep, new, old)).astype(new.dtype)


@jax.jit
def _compute_expected_state(
    new: Inexact[Array, "*shape"], old: Inexact[Array, "*shape"], rate: Float32[Array, ""]
) -> Inexact[Array, "*shape"]:
    rate = lax.stop_gradient(rate)
    share = _apply.nan_if_invalid_rate(
        rate, _apply.compute_kept_share(rate, _apply.compute_dtype(new))
    )
    dtype = new.dtype if jnp.iscomplexobj(new) else _apply.compute_dtype(new)
    wide_new, wide_old = new.astype(dtype), old.astype(dtype)
    # A term of weight 0 is excluded, so that an infinite state of weight 0 gives no NaN.
    mean = _apply.scale_array(wide_new, share) + _apply.scale_array(wide_old, 1 - share)
    mean = jnp.where(share == 0, wide_old, jnp.where(share == 1, wide_new, mean))
    return mean.astype(new.dtype)


def layer_drop(
    layer: Callable[[jax.Array], jax.Array],
    x: ArrayLike,
    rate: ArrayLike,
    *,
    key: jax.Array | None,
) -> Inexact[Array, "..."]:
    """Skip a whole layer with probability `rate`, and do not compute a skipped layer.

    Formula: y = x with probability rate, else layer(x); one decision for the whole array. At
    evaluation y = layer(x). Nothing is scaled.

    Args:
      layer: a function of `x` that keeps its shape and dtype.
      x: a floating or complex array of any shape.
      rate: the probability of skipping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation.

    Returns:
      An array of the shape and dtype of `x`. The choice is a `lax.cond`: under jit only the chosen
      branch runs (under vmap over keys both do). A traced rate outside [0, 1] gives NaN.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Fan, Grave and Joulin, "Reducing transformer depth on demand with structured dropout",
      ICLR 2020.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import layer_drop
      >>> [float(layer_drop(lambda x: 10 * x, jnp.ones(()), 0.5, key=jax.random.key(i)))
      ...  for i in range(6)]
      [10.0, 1.0, 10.0, 1.0, 1.0, 10.0]
    """
    if not callable(layer):
        _validation.fail(TypeError, "layer", layer, "a function of x", "Pass lambda x: ...")
    x = _validation.check_array(x)
    rate = _validation.check_rate(rate)
    key = _validation.check_key(key)
    if key is None or _apply.keeps_everything(rate):
        out = layer(x)
        _validation.check_same_shape_and_dtype(out, x, "layer(x)", "x")
        return out
    out = jax.eval_shape(layer, x)
    _validation.check_same_shape_and_dtype(out, x, "layer(x)", "x")
    keep, is_valid = _draw_decision(key, random.rate_array(rate))
    y = lax.cond(keep, layer, _identity, x)
    y = _apply.nan_unless(is_valid, y) if isinstance(rate, Tracer) else y
    return with_weak_type_of(out, y)


def _identity(x: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    return x


@jax.jit
def _draw_decision(
    key: Key[Array, ""], rate: Float32[Array, ""]
) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    rate = lax.stop_gradient(rate)
    words = random.draw_packed_mask(random.mask_params(key, rate), ())
    return random.unpack_mask(words, ()), random.is_valid_rate(rate)
