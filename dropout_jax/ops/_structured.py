"""Drop structures as a whole: channels, tokens, words, steps, heads or blocks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.export
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from dropout_jax import _validation, random
from dropout_jax.ops import _apply

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32, Inexact, Integer, Key, Shaped


def spatial_dropout(
    x: ArrayLike,
    rate: ArrayLike,
    *,
    key: jax.Array | None,
    channel_axis: int = -1,
    batch_axis: int | None = 0,
) -> Inexact[Array, "..."]:
    """Drop whole channels, with one decision for each channel of each row of the batch.

    Formula: `dropout` with a mask over (batch, channel), shared along all other axes. The sum of
    a channel has the variance (sum x)^2 rate / (1 - rate).

    Args:
      x: a floating or complex array, such as (batch, height, width, channel).
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, returns `x` unchanged.
      channel_axis: the axis of the channels (1 for PyTorch's layout).
      batch_axis: the axis of the batch; None if there is none.

    Returns:
      An array of the shape and dtype of `x`; gradients, edges and precision as in `dropout`. Cost:
      a select along the last axis, 1.4 times a product by a constant on a CPU.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015;
      PyTorch's Dropout1d, 2d and 3d, Keras's SpatialDropout.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import spatial_dropout
      >>> spatial_dropout(jnp.ones((1, 3, 4)), 0.5, key=jax.random.key(0))
      Array([[[2., 2., 0., 0.],
              [2., 2., 0., 0.],
              [2., 2., 0., 0.]]], dtype=float32)
    """
    x = _validation.check_array(x)
    mask_axes = {_validation.check_axis(channel_axis, x.ndim, "channel_axis")}
    if batch_axis is not None:
        mask_axes.add(_validation.check_axis(batch_axis, x.ndim, "batch_axis"))
        if len(mask_axes) == 1:
            _validation.fail(
                ValueError,
                "batch_axis",
                batch_axis,
                "another axis than channel_axis",
                "Pass batch_axis=None if there is no batch.",
            )
    return _drop_along(x, rate, key, mask_axes)


def locked_dropout(
    x: ArrayLike, rate: ArrayLike, *, key: jax.Array | None, time_axis: int = -2
) -> Inexact[Array, "..."]:
    """Apply the same mask at all steps of a sequence: variational dropout for recurrent nets.

    Formula: `dropout` with a mask shared along `time_axis`. The covariance of two steps is
    x_t x_s rate / (1 - rate).

    Args:
      x: a floating or complex array, such as (batch, time, dim).
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, returns `x` unchanged.
      time_axis: the axis along which the mask is the same.

    Returns:
      An array of the shape and dtype of `x`; gradients, edges and precision as in `dropout`. Cost:
      a select along the last axis, 1.4 times a product by a constant on a CPU.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural
      networks", NeurIPS 2016.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import locked_dropout
      >>> locked_dropout(jnp.ones((1, 3, 4)), 0.5, key=jax.random.key(0))
      Array([[[2., 2., 0., 0.],
              [2., 2., 0., 0.],
              [2., 2., 0., 0.]]], dtype=float32)
    """
    x = _validation.check_array(x)
    time = _validation.check_axis(time_axis, x.ndim, "time_axis")
    return _drop_along(x, rate, key, set(range(x.ndim)) - {time})


def token_dropout(
    x: ArrayLike,
    rate: ArrayLike,
    *,
    key: jax.Array | None,
    time_axis: int = -2,
    fill: int | None = None,
) -> Shaped[Array, "..."]:
    """Drop whole tokens: set their vectors to zero, or replace their ids.

    Formula: for a floating `x`, `dropout` with one decision for all axes after `time_axis`. For an
    integer `x`, y = fill with probability rate, else x; ids are not scaled.

    Args:
      x: token vectors, a floating array such as (batch, time, dim); or token ids, an integer array
        of any shape with one token per element.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, returns `x` unchanged.
      time_axis: the axis of the tokens, after the axes of the batch. Not used for ids.
      fill: the id that replaces a dropped id, such as the id of "unknown". For ids only.

    Returns:
      An array of the shape and dtype of `x`; for vectors, gradients, edges and precision as in
      `dropout`. For ids, a traced rate outside [0, 1], which cannot give NaN, gives the smallest
      value of the dtype.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Iyyer et al., "Deep unordered composition rivals syntactic methods", ACL 2015; Bowman et
      al., "Generating sentences from a continuous space", CoNLL 2016, for ids.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import token_dropout
      >>> token_dropout(jnp.arange(1, 9), 0.5, fill=0, key=jax.random.key(0))
      Array([1, 2, 0, 0, 5, 6, 7, 0], dtype=int32)
    """
    dtype = getattr(x, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jnp.integer):
        return _drop_ids(jnp.asarray(x), rate, key, fill)
    x = _validation.check_array(x)
    if fill is not None:
        _validation.fail(
            TypeError,
            "fill",
            fill,
            "None for token vectors",
            "Pass it with token ids, an integer x.",
        )
    time = _validation.check_axis(time_axis, x.ndim, "time_axis")
    return _drop_along(x, rate, key, set(range(time + 1)))


def _drop_ids(
    ids: Integer[Array, "*shape"],
    rate: ArrayLike,
    key: jax.Array | None,
    fill: int | None,
) -> Integer[Array, "*shape"]:
    rate = _validation.check_rate(rate)
    limits = jnp.iinfo(ids.dtype)
    fill = _validation.check_integer(fill, "fill", int(limits.min), int(limits.max))
    key = _validation.check_key(key)
    if key is None or _apply.keeps_everything(rate):
        return ids
    operands = (ids, jnp.asarray(fill, ids.dtype))
    return _apply.with_mask(_select_ids, operands, rate, key, ids.shape)


def _select_ids(
    ids: Integer[Array, "*shape"],
    fill: Integer[Array, ""],
    keep: Bool[Array, "*shape"],
    rate: Float32[Array, ""],
) -> Integer[Array, "*shape"]:
    invalid = jnp.asarray(jnp.iinfo(ids.dtype).min, ids.dtype)
    return jnp.where(random.is_valid_rate(rate), jnp.where(keep, ids, fill), invalid)


def embedding_dropout(
    table: ArrayLike, rate: ArrayLike, *, key: jax.Array | None
) -> Inexact[Array, "words ..."]:
    """Drop whole rows of an embedding table, so that a word drops everywhere in the batch.

    Formula: `dropout` with one decision for each row (the first axis). Look words up in the result.

    Args:
      table: the embedding table, a floating or complex array (words, dim).
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, returns `table` unchanged.

    Returns:
      An array of the shape and dtype of `table`; gradients, edges and precision as in `dropout`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Gal and Ghahramani, NeurIPS 2016; Merity, Keskar and Socher, "Regularizing and
      optimizing LSTM language models" (AWD-LSTM), ICLR 2018.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import embedding_dropout
      >>> table = embedding_dropout(jnp.ones((4, 2)), 0.5, key=jax.random.key(0))
      >>> table[jnp.array([0, 3, 0])]
      Array([[2., 2.],
             [0., 0.],
             [2., 2.]], dtype=float32)
    """
    table = _validation.check_array(table, "table")
    _validation.check_min_ndim(table, 1, "table")
    return _drop_along(table, rate, key, {0})


def head_dropout(
    x: ArrayLike, rate: ArrayLike, *, key: jax.Array | None, head_axis: int
) -> Inexact[Array, "..."]:
    """Drop whole attention heads, with one decision for each head of each row of the batch.

    Formula: `dropout` with a mask over (axis 0, head_axis), shared along all other axes.

    Args:
      x: a floating or complex array with the batch first, such as (batch, time, head, dim) before
        the output projection.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, returns `x` unchanged.
      head_axis: the axis of the heads. If it is 0 there is no batch.

    Returns:
      An array of the shape and dtype of `x`; gradients, edges and precision as in `dropout`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Zhou et al., "Scheduled DropHead", Findings of EMNLP 2020.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import head_dropout
      >>> head_dropout(jnp.ones((1, 2, 4, 1)), 0.5, head_axis=2, key=jax.random.key(0))[0, :, :, 0]
      Array([[2., 2., 0., 0.],
             [2., 2., 0., 0.]], dtype=float32)
    """
    x = _validation.check_array(x)
    return _drop_along(x, rate, key, {0, _validation.check_axis(head_axis, x.ndim, "head_axis")})


def _drop_along(
    x: Inexact[Array, "*shape"], rate: ArrayLike, key: jax.Array | None, mask_axes: set[int]
) -> Inexact[Array, "*shape"]:
    """Apply dropout with a mask along `mask_axes`, shared along all other axes."""
    rate = _validation.check_rate(rate)
    shape = tuple(size if axis in mask_axes else 1 for axis, size in enumerate(x.shape))
    return _apply.drop(x, rate, _validation.check_key(key), shape)


def drop_block(
    x: ArrayLike,
    rate: ArrayLike,
    block_size: int | Sequence[int],
    *,
    key: jax.Array | None,
    scale_by_keep: bool = True,
    broadcast_dims: Sequence[int] = (),
) -> Float[Array, "..."]:
    """Drop contiguous blocks of a feature map, channel by channel.

    Formula: at each position where a whole block fits, a block is dropped with probability gamma.
    Over spatial sizes n and block sizes b, gamma = min(1, rate / prod(b) * prod(n / (n - b + 1))),
    which replaces the rate in the formula of T. A position that c possible blocks cover is
    kept with probability P = (1 - gamma)^c (c is smaller at the borders), and y = x / P if kept.
    Mean x, variance x^2 (1 - P) / P. Blocks overlap, so the share dropped, 1 - mean(P), is a little
    below `rate`, to the resolution of gamma, 2^-24.

    Args:
      x: a floating array (batch, 1 to 3 spatial axes, channel).
      rate: the share to drop, in [0, 1]; a number or a scalar array, traced or not.
      block_size: the side of a block, an integer from 1 to the smallest spatial size; or one for
        each spatial axis.
      key: one PRNG key: training. None: evaluation, returns `x` unchanged.
      scale_by_keep: whether to divide kept positions by P.
      broadcast_dims: axes along which the blocks are the same: of -1, for all channels, as in timm
        by default, and 0, for the rows of the batch.

    Returns:
      An array of the shape and dtype of `x`; gradients, edges and precision as in `dropout`. Cost:
      that of `dropout` and a max-pooling of the mask. The backward pass keeps the packed seeds.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Ghiasi, Lin and Le, "DropBlock", NeurIPS 2018. Differs from it: a kept position
      is divided by its probability, not by the share that this mask keeps. So the expectation is
      exact, also at the borders, and the rows of a batch are independent.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import drop_block
      >>> y = drop_block(jnp.ones((1, 8, 1)), 0.3, 3, key=jax.random.key(3), scale_by_keep=False)
      >>> y[0, :, 0]
      Array([1., 1., 0., 0., 0., 0., 0., 1.], dtype=float32)
    """
    x = _validation.check_real_array(x)
    _validation.check_ndim(x, 3, 5, "x", "(batch, 1 to 3 spatial axes, channel)")
    rate = _validation.check_rate(rate)
    if any(jax.export.is_symbolic_dim(size) for size in x.shape[1:-1]):
        remedy = "Export for fixed sizes: its probabilities depend on them."
        _validation.fail(ValueError, "x.shape", x.shape, "of known spatial sizes", remedy)
    blocks = _check_block_size(block_size, x.shape[1:-1])
    key = _validation.check_key(key)
    shared = _check_shared_axes(broadcast_dims, x.ndim)
    _check_resolution(rate, x.shape[1:-1], blocks)
    if key is None or _apply.keeps_everything(rate) or x.size == 0:
        return x
    call = functools.partial(
        _drop_block, blocks=blocks, scale_by_keep=bool(scale_by_keep), shared=shared
    )
    return _apply.with_type_of(x, call)(x, random.rate_array(rate), key)


def _check_resolution(
    rate: float | jax.Array, spatial: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    """Refuse a known rate so small that it never drops a block."""
    if isinstance(rate, Tracer) or math.prod(spatial) == 0:
        return
    known = float(jax.device_get(rate))  # explicit, as jax.transfer_guard wants
    positions = math.prod(n - b + 1 for n, b in zip(spatial, blocks, strict=True))
    least = 2.0**-25 * math.prod(blocks) * positions / math.prod(spatial)
    if 0 < known <= least:
        _validation.fail(
            ValueError,
            "rate",
            rate,
            f"0, or above {least:.2g} for blocks of {blocks}",
            "The seeds have a resolution of 2^-24: use smaller blocks or a larger rate.",
        )


def _check_shared_axes(broadcast_dims: Sequence[int], ndim: int) -> tuple[int, ...]:
    axes = _validation.check_axes(broadcast_dims, ndim)
    if not set(axes) <= {0, ndim - 1}:
        allowed = "of 0 (the batch) and -1 (the channels): blocks are along the other axes"
        remedy = "Pass broadcast_dims=(-1,) for the same blocks in all channels."
        _validation.fail(ValueError, "broadcast_dims", broadcast_dims, allowed, remedy)
    return axes


def _check_block_size(block_size: object, spatial: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(block_size, tuple | list):
        sizes = tuple(block_size)
    else:
        sizes = (block_size,) * len(spatial)
    if len(sizes) != len(spatial):
        _validation.fail(
            ValueError,
            "block_size",
            block_size,
            f"one integer, or one for each of {len(spatial)} spatial axes",
            "The axes are (batch, ..., channel), and only those in between are spatial.",
        )
    return tuple(
        _validation.check_integer(size, "block_size", 1, max(limit, 1))
        for size, limit in zip(sizes, spatial, strict=True)
    )


@functools.partial(jax.jit, static_argnames=("blocks", "scale_by_keep", "shared"))
def _drop_block(
    x: Float[Array, "*shape"],
    rate: Float32[Array, ""],
    key: Key[Array, ""],
    *,
    blocks: tuple[int, ...],
    scale_by_keep: bool,
    shared: tuple[int, ...],
) -> Float[Array, "*shape"]:
    spatial = x.shape[1:-1]
    positions = tuple(n - b + 1 for n, b in zip(spatial, blocks, strict=True))
    shape = random.mask_shape((x.shape[0], *positions, x.shape[-1]), shared)
    rate = lax.stop_gradient(rate)
    gamma = _compute_gamma(rate, spatial, blocks, positions)
    words = random.draw_packed_mask(random.mask_params(key, gamma), shape)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def unpack_and_apply(x, words):
        keep = _expand_seeds(random.unpack_mask(words, shape), blocks)
        scale = _compute_scale(gamma, spatial, blocks, _apply.compute_dtype(x))
        scale = scale if scale_by_keep else jnp.ones_like(scale)
        keep = keep | ~random.is_valid_rate(rate)
        return _apply.select_scaled(keep, x, _apply.nan_if_invalid_rate(rate, scale))

    return unpack_and_apply(x, words)


def _compute_gamma(
    rate: Float32[Array, ""],
    spatial: tuple[int, ...],
    blocks: tuple[int, ...],
    positions: tuple[int, ...],
) -> Float32[Array, ""]:
    """Compute the gamma of Ghiasi et al.; it is 1 at rate 1, which drops everything."""
    gamma = rate * (math.prod(spatial) / math.prod(blocks) / math.prod(positions))
    return jnp.where(rate < 1, jnp.minimum(gamma, 1), rate)


def _expand_seeds(
    kept_seeds: Bool[Array, "batch *positions channel"], blocks: tuple[int, ...]
) -> Bool[Array, "batch *spatial channel"]:
    """Return False where a dropped block covers; a min-pooling, axis by axis."""
    keep = kept_seeds
    for axis, block in enumerate(blocks, start=1):
        edges = [(block - 1, block - 1) if i == axis else (0, 0) for i in range(keep.ndim)]
        padded = jnp.pad(keep, edges, constant_values=True)
        size = padded.shape[axis] + 1 - block
        windows = [lax.slice_in_dim(padded, o, o + size, axis=axis) for o in range(block)]
        keep = functools.reduce(jnp.logical_and, windows)
    return keep


def _compute_scale(
    gamma: Float32[Array, ""], spatial: tuple[int, ...], blocks: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "1 *spatial 1"]:
    """Compute 1 / P at every position; 1 where P is 0 and nothing is kept."""
    covers = jnp.ones((), dtype)
    for axis, (n, b) in enumerate(zip(spatial, blocks, strict=True)):
        index = jnp.arange(n)
        count = jnp.minimum(jnp.minimum(index + 1, n - index), min(b, n - b + 1)).astype(dtype)
        covers = covers * jnp.expand_dims(count, [i for i in range(len(spatial)) if i != axis])
    share = _apply.compute_kept_share(gamma, dtype)
    probability = jnp.where(share > 0, jnp.where(share > 0, share, 1) ** covers, 1)
    return (1 / probability)[None, ..., None]
