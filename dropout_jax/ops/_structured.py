"""Structured dropout: whole channels, tokens, words, steps, heads or blocks drop together."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from dropout_jax import _validation, random
from dropout_jax.ops import _apply

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Inexact, Shaped


def spatial_dropout(
    x, rate, *, key, channel_axis=-1, batch_axis: int | None = 0
) -> Inexact[Array, "..."]:
    """Drop whole channels: one decision for each channel of each row of the batch.

    Formula: `dropout` with a mask over (batch, channel), the same at all other places. The sum of a
    channel has the variance (sum x)^2 rate / (1 - rate).

    Args:
      x: a floating or complex array, such as (batch, height, width, channel).
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, `x` comes back as it was.
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
    x = _validation.array(x)
    own = {_validation.axis(channel_axis, x.ndim, "channel_axis")}
    if batch_axis is not None:
        own.add(_validation.axis(batch_axis, x.ndim, "batch_axis"))
        if len(own) == 1:
            _validation.fail(
                ValueError,
                "batch_axis",
                batch_axis,
                "another axis than channel_axis",
                "Pass batch_axis=None if there is no batch.",
            )
    return _own_axes(x, rate, key, own)


def locked_dropout(x, rate, *, key, time_axis=-2) -> Inexact[Array, "..."]:
    """Variational dropout for recurrent nets: one mask for all steps of a sequence.

    Formula: `dropout` with a mask shared along `time_axis`. The covariance of two steps is
    x_t x_s rate / (1 - rate).

    Args:
      x: a floating or complex array, such as (batch, time, dim).
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, `x` comes back as it was.
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
    x = _validation.array(x)
    time = _validation.axis(time_axis, x.ndim, "time_axis")
    return _own_axes(x, rate, key, set(range(x.ndim)) - {time})


def token_dropout(x, rate, *, key, time_axis=-2, fill=None) -> Shaped[Array, "..."]:
    """Drop whole tokens: zero their vectors, or replace their ids.

    Formula: for a floating `x`, `dropout` with one decision for all axes after `time_axis`. For an
    integer `x`, y = fill with probability rate, else x; ids are not scaled.

    Args:
      x: token vectors, a floating array such as (batch, time, dim); or token ids, an integer array
        of any shape, each element of which is a token.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, `x` comes back as it was.
      time_axis: the axis of the tokens; the axes before it are the batch's. Not used for ids.
      fill: the id that replaces a dropped one, such as that of "unknown"; for ids only.

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
    if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.integer):
        return _drop_ids(jnp.asarray(x), rate, key, fill)
    x = _validation.array(x)
    if fill is not None:
        _validation.fail(
            TypeError, "fill", fill, "None for token vectors", "It replaces ids, an integer x."
        )
    time = _validation.axis(time_axis, x.ndim, "time_axis")
    return _own_axes(x, rate, key, set(range(time + 1)))


def _drop_ids(ids, rate, key, fill):
    rate = _validation.rate(rate)
    fill = _validation.integer(fill, "fill", *_id_range(ids.dtype))
    key = _validation.key(key)
    if key is None or _apply.keeps_everything(rate):
        return ids
    return _apply.with_mask(_select_ids, (ids, jnp.asarray(fill, ids.dtype)), rate, key, ids.shape)


def _id_range(dtype) -> tuple[int, int]:
    limits = jnp.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _select_ids(ids, fill, keep, rate):
    wrong = jnp.asarray(jnp.iinfo(ids.dtype).min, ids.dtype)
    return jnp.where(random.in_range(rate), jnp.where(keep, ids, fill), wrong)


def embedding_dropout(table, rate, *, key) -> Inexact[Array, "words dim"]:
    """Drop whole rows of an embedding table: a word is dropped everywhere in the batch at once.

    Formula: `dropout` with one decision for each row (the first axis). Look the words up after it.

    Args:
      table: the embedding table, a floating or complex array (words, dim).
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, `table` comes back as it was.

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
    table = _validation.array(table, "table")
    _validation.at_least_axes(table, 1, "table")
    return _own_axes(table, rate, key, {0})


def head_dropout(x, rate, *, key, head_axis) -> Inexact[Array, "..."]:
    """Drop whole attention heads: one decision for each head of each row of the batch.

    Formula: `dropout` with a mask over (axis 0, head_axis), the same at all other places.

    Args:
      x: a floating or complex array with the batch first, such as (batch, time, head, dim) before
        the output projection.
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not.
      key: one PRNG key: training. None: evaluation, `x` comes back as it was.
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
    x = _validation.array(x)
    return _own_axes(x, rate, key, {0, _validation.axis(head_axis, x.ndim, "head_axis")})


def _own_axes(x, rate, key, own: set[int]):
    """Dropout with one decision for each place along the axes in `own`."""
    rate = _validation.rate(rate)
    shape = tuple(size if axis in own else 1 for axis, size in enumerate(x.shape))
    return _apply.drop(x, rate, _validation.key(key), shape)


def drop_block(x, rate, block_size, *, key, scale_by_keep=True) -> Float[Array, "..."]:
    """Drop contiguous blocks of a feature map, channel by channel.

    Formula: with probability gamma a block begins at each place where it fits whole, and all that
    a block covers is zero. Over spatial sizes n and blocks of b,
    gamma = rate / prod(b) * prod(n / (n - b + 1)), of which the mask's T is made; at most 1.
    A place covered by c possible blocks is kept with probability P = (1 - gamma)^c (c is smaller at
    the borders), and y = x / P if kept. Mean x, variance x^2 (1 - P) / P. Blocks overlap, so the
    share dropped, 1 - mean(P), is a little below `rate`, to the resolution of gamma, 2^-16.

    Args:
      x: a floating array (batch, 1 to 3 spatial axes, channel).
      rate: the share to drop, in [0, 1]; a number or a scalar array, traced or not.
      block_size: the side of a block, an integer from 1 to the smallest spatial size; or one for
        each spatial axis.
      key: one PRNG key: training. None: evaluation, `x` comes back as it was.
      scale_by_keep: whether to divide by P; without it kept places pass unscaled.

    Returns:
      An array of the shape and dtype of `x`; gradients, edges and precision as in `dropout`. Cost:
      a max-pooling of the mask more than `dropout`; the backward pass keeps the packed seeds.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Ghiasi, Lin and Le, "DropBlock", NeurIPS 2018. Differs from it: kept places are divided
      by their probability, not by the share that happened to be kept, so the expectation is exact,
      borders included, and rows of a batch do not depend on each other.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import drop_block
      >>> y = drop_block(jnp.ones((1, 8, 1)), 0.3, 3, key=jax.random.key(3), scale_by_keep=False)
      >>> y[0, :, 0]
      Array([1., 1., 0., 0., 0., 0., 0., 1.], dtype=float32)
    """
    x = _validation.real_array(x)
    _validation.between_axes(x, 3, 5, "x", "(batch, 1 to 3 spatial axes, channel)")
    rate = _validation.rate(rate)
    blocks = _block_sizes(block_size, x.shape[1:-1])
    key = _validation.key(key)
    _require_resolution(rate, x.shape[1:-1], blocks)
    if key is None or _apply.keeps_everything(rate) or x.size == 0:
        return x
    call = functools.partial(_drop_block, blocks=blocks, scale_by_keep=bool(scale_by_keep))
    return _apply.in_sharding_of(x, call)(x, jnp.float32(rate), key)


def _require_resolution(rate, spatial, blocks) -> None:
    """Refuse a known rate so small that no block would ever begin."""
    if isinstance(rate, Tracer) or not rate > 0 or math.prod(spatial) == 0:
        return
    starts = math.prod(n - b + 1 for n, b in zip(spatial, blocks, strict=True))
    least = 2.0**-17 * math.prod(blocks) * starts / math.prod(spatial)
    if rate <= least:
        _validation.fail(
            ValueError,
            "rate",
            rate,
            f"0, or above {least:.2g} for blocks of {blocks}",
            "Seeds have the mask's resolution of 2^-16: take smaller blocks or a larger rate.",
        )


def _block_sizes(block_size, spatial: tuple[int, ...]) -> tuple[int, ...]:
    several = isinstance(block_size, tuple | list)
    sizes = tuple(block_size) if several else (block_size,) * len(spatial)
    if len(sizes) != len(spatial):
        _validation.fail(
            ValueError,
            "block_size",
            block_size,
            f"one integer, or one for each of {len(spatial)} spatial axes",
            "Channels come last: (batch, ..., channel).",
        )
    return tuple(
        _validation.integer(size, "block_size", 1, max(limit, 1))
        for size, limit in zip(sizes, spatial, strict=True)
    )


@functools.partial(jax.jit, static_argnames=("blocks", "scale_by_keep"))
def _drop_block(x, rate, key, *, blocks, scale_by_keep):
    spatial = x.shape[1:-1]
    starts = tuple(n - b + 1 for n, b in zip(spatial, blocks, strict=True))
    shape = (x.shape[0], *starts, x.shape[-1])
    rate = lax.stop_gradient(rate)
    gamma = _gamma(rate, spatial, blocks, starts)
    words = random.packed_mask(key, gamma, shape)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def unpack_and_apply(x, words):
        keep = _outside_blocks(random.unpack(words, shape), blocks)
        scale = _inverse_keep(gamma, spatial, blocks, _apply.compute_dtype(x))
        scale = scale if scale_by_keep else jnp.ones_like(scale)
        keep = keep | ~random.in_range(rate)
        return _apply.select_scaled(keep, x, _apply.nan_outside(rate, scale))

    return unpack_and_apply(x, words)


def _gamma(rate, spatial, blocks, starts):
    """Ghiasi et al.'s gamma; 1 at rate 1, so that everything is dropped there."""
    gamma = rate * (math.prod(spatial) / math.prod(blocks) / math.prod(starts))
    return jnp.where(rate < 1, jnp.minimum(gamma, 1), rate)


def _outside_blocks(kept_seeds, blocks):
    """False where a block covers: a place is kept if no block that covers it begins. By axis."""
    keep = kept_seeds
    for axis, block in enumerate(blocks, start=1):
        edges = [(block - 1, block - 1) if i == axis else (0, 0) for i in range(keep.ndim)]
        padded = jnp.pad(keep, edges, constant_values=True)
        size = padded.shape[axis] + 1 - block
        windows = [lax.slice_in_dim(padded, o, o + size, axis=axis) for o in range(block)]
        keep = functools.reduce(jnp.logical_and, windows)
    return keep


def _inverse_keep(gamma, spatial, blocks, dtype):
    """1 / P at every place, of shape (1, *spatial, 1); 1 where P is 0 and nothing is kept."""
    covers = jnp.ones((), dtype)
    for axis, (n, b) in enumerate(zip(spatial, blocks, strict=True)):
        place = jnp.arange(n)
        count = jnp.minimum(jnp.minimum(place + 1, n - place), min(b, n - b + 1)).astype(dtype)
        covers = covers * jnp.expand_dims(count, [i for i in range(len(spatial)) if i != axis])
    share = _apply.kept_share(gamma, dtype)
    probability = jnp.where(share > 0, jnp.where(share > 0, share, 1) ** covers, 1)
    return (1 / probability)[None, ..., None]
