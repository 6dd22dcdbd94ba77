"""The NumPy oracle: a second implementation of the mask and the ops, from their specification.

It imports NumPy only and shares no code with the rest of the package. It is slow on purpose: it
assembles the 32-bit number of every element bit by bit and compares it with the threshold, where
`dropout_jax.random` combines whole words. A key is a pair of uint32 words, as from
`jax.random.key_data(key)` for threefry2x32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Key = Any  # a pair of uint32 words: an array, or two integers
Number = float | np.floating

_FOLD = 0x64726F70
_MASK32 = 0xFFFFFFFF
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)


def threefry2x32(
    key: Key, counter: Sequence[npt.ArrayLike], rounds: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 (Salmon et al., SC 2011) on arrays of words, in 64-bit arithmetic.

    Args:
      key: two words or arrays of words.
      counter: two words or arrays of words.
      rounds: 20 in this package; Random123 has known answers for other numbers too.

    Returns:
      Two uint32 arrays, broadcast over key and counter.

    Example:
      >>> [hex(int(word)) for word in threefry2x32((0, 0), (0, 0))]
      ['0x6b200159', '0x99ba4efe']
    """
    key = [np.asarray(word, np.uint64) for word in key]
    key.append(key[0] ^ key[1] ^ np.uint64(0x1BD11BDA))
    x, y = ((np.asarray(c, np.uint64) + k) & _MASK32 for c, k in zip(counter, key, strict=False))
    for index in range(rounds):
        x = (x + y) & _MASK32
        left = _ROTATIONS[index % 8]
        y = ((y << np.uint64(left)) | (y >> np.uint64(32 - left))) & _MASK32 ^ x
        if index % 4 == 3:
            inject = index // 4 + 1
            x = (x + key[inject % 3]) & _MASK32
            y = (y + key[(inject + 1) % 3] + np.uint64(inject)) & _MASK32
    return np.asarray(x, np.uint32), np.asarray(y, np.uint32)


def fold_in(key: Key, data: int) -> np.ndarray:
    """Fold as `jax.random.fold_in` for threefry2x32: the block of counter (0, data)."""
    if not 0 <= data < 2**32:
        raise ValueError(f"data={data!r} is not allowed: data must be from 0 to 2^32 - 1.")
    return np.array(threefry2x32(key, (0, data)))


def prng_key(seed: int | np.integer) -> np.ndarray:
    """Derive the words of `jax.random.key`: the high word (0 for 32 bits) and the low word."""
    seed = int(seed)  # a narrow NumPy integer does not hold the mask
    return np.array([seed >> 32 & _MASK32, seed & _MASK32], np.uint32)


def split(key: Key, count: int = 2) -> np.ndarray:
    """Split as `jax.random.split` for threefry2x32: key i is the block of counter (0, i)."""
    return np.stack(threefry2x32(key, (0, np.arange(count))), axis=-1)


def random_bits(key: Key, shape: Sequence[int], width: int = 32) -> np.ndarray:
    """Draw `jax.random.bits` of 8 to 64 bits for threefry2x32 (partitionable, JAX's default)."""
    index = np.arange(math.prod(shape), dtype=np.uint64)
    first, second = threefry2x32(key, (index >> np.uint64(32), index & np.uint64(_MASK32)))
    if width == 64:
        words = first.astype(np.uint64) * np.uint64(1 << 32) + second
    else:
        words = (first ^ second) & np.uint32((1 << width) - 1)
    return words.astype(f"uint{width}").reshape(shape)


def random_uniform(
    key: Key, shape: Sequence[int], dtype: type[np.floating] = np.float32
) -> np.ndarray:
    """Draw `jax.random.uniform` in float32 or float64: the top 23 or 52 bits as a fraction."""
    width, digits = (32, 23) if dtype == np.float32 else (64, 52)
    return (random_bits(key, shape, width) >> (width - digits)).astype(dtype) / dtype(2**digits)


def random_bernoulli(
    key: Key, p: Number, shape: Sequence[int], dtype: type[np.floating] = np.float32
) -> np.ndarray:
    """Draw `jax.random.bernoulli`, with p in the dtype that JAX uses."""
    return random_uniform(key, shape, dtype) < dtype(p)


def threshold(rate: Number) -> int:
    """Compute T, of 2^32; an element is kept with probability T / 2^32."""
    return int(np.rint(np.float64(np.float32(1) - np.float32(rate)) * 2**32))


def keep_mask(
    key: Key, rate: Number, shape: Sequence[int], *, broadcast_dims: Sequence[int] = ()
) -> np.ndarray:
    """Compute the mask of a threefry2x32 key: bool, True is kept, size 1 on `broadcast_dims`."""
    return compute_mask(fold_in(key, _FOLD), rate, shape, broadcast_dims=broadcast_dims)


def compute_mask(
    seed: Key, rate: Number, shape: Sequence[int], *, broadcast_dims: Sequence[int] = ()
) -> np.ndarray:
    """Compute the mask of the two words of a folded key."""
    shape = list(shape)
    for dim in broadcast_dims:
        shape[dim] = 1
    if len(shape) >= 3 and shape[-2] >= 32:
        numbers = np.swapaxes(_draw_rows_of_words(seed, shape, axis=-2), -1, -2)
    elif shape and shape[-1] >= 32:
        numbers = _draw_rows_of_words(seed, shape, axis=-1)
    else:
        numbers = _draw_rows_of_words(seed, [math.prod(shape)], axis=-1)
    return np.reshape(numbers + threshold(rate) >= 2**32, shape)


def _draw_rows_of_words(seed: Key, shape: Sequence[int], axis: int) -> np.ndarray:
    """Draw the 32-bit number of every element of a shape, with the packed axis last."""
    size = shape[axis]
    words = -(-size // 32)
    if axis == -1:  # words of one row follow each other along the last axis
        row, column = np.divmod(np.arange(math.prod(shape[:-1]) * words), words)
        row, column = (x.reshape(*shape[:-1], words) for x in (row, column))
    else:  # words of one column follow each other over the rows
        row, column = np.divmod(np.arange(math.prod(shape[:-2]) * words * shape[-1]), shape[-1])
        lead = (*shape[:-2], words, shape[-1])
        row, column = (np.swapaxes(x.reshape(lead), -1, -2) for x in (row, column))
    numbers = _draw_numbers(seed, row, column)
    return numbers.reshape(*numbers.shape[:-2], words * 32)[..., :size]


def _draw_numbers(seed: Key, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Draw the 32 numbers of every word; their axis is the last."""
    row, column = row.astype(np.uint64)[..., None], column.astype(np.uint64)[..., None]
    bit = np.arange(32, dtype=np.uint64)
    numbers = np.zeros((*row.shape[:-1], 32), np.int64)
    for plane in range(16):
        pair = threefry2x32(seed, (row, 8 * column + plane // 2))
        own = ((pair[plane % 2] >> bit) & 1).astype(np.int64)
        numbers += own << (16 + plane)
        if plane == 0:
            for k in range(16):
                numbers += own[..., (np.arange(32) + 1 + k) % 32] << (15 - k)
    return numbers


def _keep_share(rate: Number, dtype: type[np.floating]) -> np.floating:
    """Return 1 - rate, subtracted in float32, in a dtype."""
    return dtype(np.float32(1) - np.float32(rate))


def apply_mask(x: npt.ArrayLike, keep: npt.ArrayLike, rate: Number) -> np.ndarray:
    """Return x / (1 - rate) where kept, else 0; the product in float32 or float64, rounded once."""
    x = np.asarray(x)
    is_double = x.dtype.itemsize // (2 if np.iscomplexobj(x) else 1) == 8
    if np.float32(rate) == 1:
        return np.zeros_like(x)
    scale = 1 / _keep_share(rate, np.float64 if is_double else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.iscomplexobj(x):
            scaled = np.zeros_like(x)
            scaled.real, scaled.imag = np.real(x) * scale, np.imag(x) * scale
        else:
            scaled = (x.astype(type(scale)) * scale).astype(x.dtype)
    return np.where(keep, scaled, np.zeros_like(x))


def dropout(
    x: npt.ArrayLike, rate: Number, *, key: Key | None, broadcast_dims: Sequence[int] = ()
) -> np.ndarray:
    """Apply inverted dropout with the mask of `keep_mask`; `key=None` is evaluation."""
    if key is None:
        return np.asarray(x)
    shape = np.shape(x)
    return apply_mask(x, keep_mask(key, rate, shape, broadcast_dims=broadcast_dims), rate)


def dropout_unscaled(x: npt.ArrayLike, rate: Number, *, key: Key | None) -> np.ndarray:
    """Drop without scaling in training, and multiply by 1 - rate at evaluation."""
    x = np.asarray(x)
    if key is None:
        share = _keep_share(rate, np.float64)
        if share == 0:
            return np.zeros_like(x)
        if np.iscomplexobj(x):
            return np.asarray((x * share).astype(x.dtype))
        return (x.astype(_compute_dtype(x)) * _compute_dtype(x)(share)).astype(x.dtype)
    return np.where(keep_mask(key, rate, x.shape), x, np.zeros_like(x))


def spatial_dropout(
    x: npt.ArrayLike,
    rate: Number,
    *,
    key: Key | None,
    channel_axis: int = -1,
    batch_axis: int | None = 0,
) -> np.ndarray:
    """Drop with one decision for each (batch, channel)."""
    own = [channel_axis] if batch_axis is None else [channel_axis, batch_axis]
    return dropout(x, rate, key=key, broadcast_dims=_other_axes(x, own))


def locked_dropout(
    x: npt.ArrayLike, rate: Number, *, key: Key | None, time_axis: int = -2
) -> np.ndarray:
    """Drop with one mask for all steps."""
    return dropout(x, rate, key=key, broadcast_dims=(time_axis,))


def token_dropout(
    x: npt.ArrayLike, rate: Number, *, key: Key | None, time_axis: int = -2, fill: int | None = None
) -> np.ndarray:
    """Drop with one decision for each token; `fill` replaces ids."""
    x = np.asarray(x)
    if "int" in x.dtype.name:  # NumPy does not know int4 as an integer
        return x if key is None else np.where(keep_mask(key, rate, x.shape), x, x.dtype.type(fill))
    return dropout(x, rate, key=key, broadcast_dims=range(time_axis % x.ndim + 1, x.ndim))


def embedding_dropout(table: npt.ArrayLike, rate: Number, *, key: Key | None) -> np.ndarray:
    """Drop with one decision for each row."""
    return dropout(table, rate, key=key, broadcast_dims=_other_axes(table, [0]))


def head_dropout(x: npt.ArrayLike, rate: Number, *, key: Key | None, head_axis: int) -> np.ndarray:
    """Drop with one decision for each (row of axis 0, head)."""
    return dropout(x, rate, key=key, broadcast_dims=_other_axes(x, [0, head_axis]))


def drop_path(
    x: npt.ArrayLike, rate: Number, *, key: Key | None, mode: str = "row", scale: bool = True
) -> np.ndarray:
    """Drop with one decision for each row, or one for all."""
    shared = _other_axes(x, [0] if mode == "row" else [])
    if scale or key is None:
        return dropout(x, rate, key=key, broadcast_dims=shared)
    return np.where(keep_mask(key, rate, np.shape(x), broadcast_dims=shared), x, np.zeros_like(x))


def drop_connect(weights: npt.ArrayLike, rate: Number, *, key: Key | None) -> np.ndarray:
    """Apply dropout to weights."""
    return dropout(weights, rate, key=key)


def _round(values: npt.ArrayLike, dtype: np.dtype) -> np.ndarray:
    """Round float64 to a dtype; what overflows becomes what the dtype makes of it."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(dtype)


def _other_axes(x: npt.ArrayLike, own: Sequence[int]) -> list[int]:
    """Return all other axes."""
    excluded = {axis % np.ndim(x) for axis in own}
    return [axis for axis in range(np.ndim(x)) if axis not in excluded]


def _compute_dtype(x: np.ndarray) -> type[np.floating]:
    """Return the dtype of products."""
    return np.float64 if x.dtype == np.float64 else np.float32


def alpha_dropout(
    x: npt.ArrayLike, rate: Number, *, key: Key | None, broadcast_dims: Sequence[int] = ()
) -> np.ndarray:
    """Apply the dropout of SELU, in float64."""
    x = np.asarray(x)
    if key is None:
        return x
    q = _keep_share(rate, np.float64)
    if q == 0:
        return np.zeros_like(x)
    keep = keep_mask(key, rate, x.shape, broadcast_dims=broadcast_dims)
    saturation = -1.0507009873554805 * 1.6732632423543772
    a = (q + saturation**2 * q * (1 - q)) ** -0.5
    y = a * np.where(keep, x.astype(np.float64), saturation) - a * saturation * (1 - q)
    return _round(y, x.dtype)


def masked_dropout(
    x: npt.ArrayLike, rate: Number, where: npt.ArrayLike, *, key: Key | None
) -> np.ndarray:
    """Apply dropout where `where`, else return x."""
    return np.where(where, dropout(x, rate, key=key), x)


def zoneout(new: npt.ArrayLike, old: npt.ArrayLike, rate: Number, *, key: Key | None) -> np.ndarray:
    """Return the new state where kept, else the old one; at evaluation their expectation."""
    new, old = np.asarray(new), np.asarray(old)
    if key is not None:
        return np.where(keep_mask(key, rate, new.shape), new, old)
    wide = np.complex128 if np.iscomplexobj(new) else np.float64
    q, mean = _keep_share(rate, np.float64), np.zeros(new.shape, wide)
    for weight, state in ((q, new), (1 - q, old)):
        if weight > 0:  # an infinite state of weight 0 has no effect
            mean = mean + weight * state.astype(wide)
    return _round(mean, new.dtype)


def layer_drop(
    layer: Callable[..., npt.ArrayLike], x: npt.ArrayLike, rate: Number, *, key: Key | None
) -> npt.ArrayLike:
    """Return layer(x) if the mask of a scalar keeps it, else x."""
    return layer(x) if key is None or keep_mask(key, rate, ()) else np.asarray(x)


def dot_product_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    bias: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: np.ndarray | None = None,
    key_value_seq_lengths: np.ndarray | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key | None = None,
    dropout_broadcast_dims: Sequence[int] = (),
) -> np.ndarray:
    """Compute attention one query at a time, over the keys that it sees, in float64."""
    given_shape = query.shape
    query, key, value = (
        np.asarray(x, np.float64).reshape((1,) * (4 - x.ndim) + x.shape)
        for x in (query, key, value)
    )
    batch, queries, heads, dim = query.shape
    keys, key_heads = key.shape[1:3]
    scale = 1 / math.sqrt(max(dim, 1)) if scale is None else scale
    shape = (batch, heads, queries, keys)
    bias = np.broadcast_to(0.0 if bias is None else bias, shape)
    mask = np.broadcast_to(True if mask is None else mask, shape)
    window = (queries, keys) if local_window_size is None else local_window_size
    left, right = np.broadcast_to(window, 2).tolist()
    factor = np.ones(shape)
    if dropout_key is not None:
        keep = keep_mask(dropout_key, dropout_rate, shape, broadcast_dims=dropout_broadcast_dims)
        factor = apply_mask(factor, keep, dropout_rate)
    out = np.zeros(query.shape)
    for b, n, t in np.ndindex(batch, heads, queries):
        if query_seq_lengths is not None and t >= query_seq_lengths[b]:
            continue
        visible = [
            s
            for s in range(max(0, t - left), min(keys, t + right + 1))
            if mask[b, n, t, s]
            and not (is_causal and s > t)
            and not (key_value_seq_lengths is not None and s >= key_value_seq_lengths[b])
        ]
        if visible:
            head = n // (heads // key_heads)
            logits = key[b, visible, head] @ query[b, t, n] * scale + bias[b, n, t, visible]
            weights = _softmax(logits) * factor[b, n, t, visible]
            out[b, t, n] = weights @ value[b, visible, head]
    return out.reshape(given_shape)


def dropkey_bias(
    shape: Sequence[int], rate: Number, *, key: Key | None, dtype: npt.DTypeLike = np.float32
) -> np.ndarray:
    """Return -inf where dropped, else 0, row by row; a row never loses all its keys."""
    bias = np.zeros(shape, dtype)
    if key is None:
        return bias
    keep = keep_mask(key, rate, shape)
    for row in np.ndindex(*shape[:-1]):
        if keep[row].any():
            bias[row] = [0.0 if kept else -np.inf for kept in keep[row]]
    return bias


def drop_block(
    x: npt.ArrayLike,
    rate: Number,
    block_size: int | Sequence[int],
    *,
    key: Key | None,
    scale_by_keep: bool = True,
    broadcast_dims: Sequence[int] = (),
) -> np.ndarray:
    """Drop block by block, and divide what is kept by its exact probability, in float64."""
    x = np.asarray(x)
    if key is None or x.size == 0:
        return x
    spatial = x.shape[1:-1]
    blocks = np.broadcast_to(block_size, len(spatial)).tolist()
    positions = [n - b + 1 for n, b in zip(spatial, blocks, strict=True)]
    gamma = block_gamma(rate, spatial, blocks)
    seeds = (x.shape[0], *positions, x.shape[-1])
    is_seed = np.broadcast_to(~keep_mask(key, gamma, seeds, broadcast_dims=broadcast_dims), seeds)
    keep, covers = np.ones(x.shape, bool), np.zeros((*spatial,))
    for first in np.ndindex(*positions):
        block = tuple(slice(s, s + b) for s, b in zip(first, blocks, strict=True))
        keep[(slice(None), *block)] &= ~is_seed[(slice(None), *first)].reshape(
            x.shape[0], *(1,) * len(spatial), x.shape[-1]
        )
        covers[block] += 1
    probability = _keep_share(gamma, np.float64) ** covers[None, ..., None]
    scale = 1 / np.where(probability > 0, probability, 1) if scale_by_keep else 1.0
    return _round(np.where(keep, x.astype(np.float64) * scale, 0), x.dtype)


def block_gamma(rate: Number, spatial: Sequence[int], blocks: Sequence[int] | np.ndarray) -> Number:
    """Compute the gamma of Ghiasi et al., in float32 as the threshold; 1 at rate 1."""
    positions = math.prod(n - b + 1 for n, b in zip(spatial, blocks, strict=True))
    factor = math.prod(spatial) / math.prod(int(b) for b in blocks) / positions
    return 1.0 if rate >= 1 else min(np.float32(rate) * np.float32(factor), np.float32(1))


def uniform_noise(key: Key, shape: Sequence[int]) -> np.ndarray:
    """Draw the deviates in (0, 1) of `dropout_jax.random`, in float64."""
    shape = tuple(shape)
    rows, width = math.prod(shape[:-1]), shape[-1] if shape else 1
    row = np.arange(rows, dtype=np.uint64)[:, None]
    word, _ = threefry2x32(fold_in(key, 0x6E6F6973), (row, np.arange(width, dtype=np.uint64)))
    return np.asarray(((word >> 9).astype(np.float64) + 0.5).reshape(shape) / 2**23)


def normal_noise(key: Key, shape: Sequence[int]) -> np.ndarray:
    """Draw normal deviates of `dropout_jax.random`, by Newton's method on the distribution."""
    uniform = uniform_noise(key, shape)
    root_two_pi = math.sqrt(2 * math.pi)
    deviates = np.zeros(uniform.shape)
    for index, u in np.ndenumerate(uniform):
        lower = min(u, 1 - u)  # the tail, where the distribution function loses no digits
        z = -math.sqrt(-2 * math.log(2 * lower)) if lower < 0.5 else 0.0
        for _ in range(50):
            error = 0.5 * math.erfc(-z / math.sqrt(2)) - lower
            z -= error * root_two_pi * math.exp(z * z / 2)
        deviates[index] = z if u < 0.5 else -z
    return deviates


def gaussian_dropout(x: npt.ArrayLike, rate: Number, *, key: Key | None) -> np.ndarray:
    """Return x (1 + sqrt(rate / (1 - rate)) e), in float64."""
    x = np.asarray(x)
    if key is None:
        return x
    if rate >= 1:
        return np.zeros_like(x)
    deviation = math.sqrt(np.float32(rate) / (1 - np.float64(np.float32(rate))))
    return _round(x * (1 + deviation * normal_noise(key, x.shape)), x.dtype)


def concrete_dropout(
    x: npt.ArrayLike, rate_logit: Number, *, key: Key | None, temperature: float = 0.1
) -> np.ndarray:
    """Apply the relaxed mask, in float64; a logit of inf is rate 1."""
    x = np.asarray(x)
    if key is None:
        return x
    if rate_logit == math.inf:
        return np.zeros_like(x)
    u, logit = uniform_noise(key, x.shape), np.float64(rate_logit)
    log_kept = -np.logaddexp(0, (logit + np.log(u / (1 - u))) / np.float32(temperature))
    with np.errstate(over="ignore"):
        factor = np.exp(log_kept + np.logaddexp(0, logit))
    return _round(x * factor, x.dtype)


def concrete_dropout_penalty(
    weights: npt.ArrayLike,
    rate_logit: Number,
    *,
    weight_scale: Number,
    dropout_scale: Number,
    features: int | None = None,
) -> float:
    """Compute the decay of the weights and the entropy of the rate."""
    square = float((np.asarray(weights, np.float64) ** 2).sum())
    log_p, log_kept = (-np.logaddexp(0, sign * np.float64(rate_logit)) for sign in (-1, 1))
    # A probability of 0 has no entropy, and weights of 0 have no cost.
    entropy = -sum(math.exp(log) * log for log in (log_p, log_kept) if log > -math.inf)
    with np.errstate(over="ignore"):
        decay = square * np.exp(-log_kept) if square else 0.0
    count = np.shape(weights)[0] if features is None else features
    return float(weight_scale * decay - dropout_scale * count * entropy)


def variational_dropout(
    x: npt.ArrayLike, log_alpha: npt.ArrayLike, *, key: Key | None
) -> np.ndarray:
    """Return x (1 + sqrt(alpha) e), in float64."""
    x = np.asarray(x)
    if key is None:
        return x
    deviation = np.exp(np.asarray(log_alpha, np.float64) / 2)
    return _round(x * (1 + deviation * normal_noise(key, x.shape)), x.dtype)


def variational_dropout_kl(log_alpha: npt.ArrayLike) -> np.ndarray:
    """Compute the fit of Molchanov et al."""
    log_alpha = np.asarray(log_alpha, np.float64)
    fit = 0.63576 * np.exp(-np.logaddexp(0, -(1.87320 + 1.48695 * log_alpha)))
    return np.asarray(0.63576 - fit + 0.5 * np.logaddexp(0, -log_alpha))


def multi_sample_dropout(
    head: Callable[..., npt.ArrayLike],
    x: npt.ArrayLike,
    rate: Number,
    *,
    key: Key | None,
    samples: int,
) -> npt.ArrayLike:
    """Average over a loop of masks, for a head that returns one array."""
    if key is None:
        return head(x)
    return np.mean(
        [np.asarray(head(dropout(x, rate, key=fold_in(key, i)))) for i in range(samples)], axis=0
    )


def r_drop_divergence(logits_a: npt.ArrayLike, logits_b: npt.ArrayLike) -> np.ndarray:
    """Compute the mean of the two divergences, in float64, class by class.

    A class of probability 0 in one of them adds inf, in both 0.
    """
    a, b = (_log_softmax(np.asarray(logits, np.float64)) for logits in (logits_a, logits_b))
    out = np.zeros(a.shape[:-1])
    for index in np.ndindex(*a.shape):
        if a[index] != b[index]:  # also if one is NaN
            both = math.exp(a[index]) - math.exp(b[index])
            difference = a[index] - b[index]
            out[index[:-1]] += math.inf if np.isinf(difference) else both * difference / 2
    return out


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the logarithm of the softmax; a row of -inf stays so, and one with inf is NaN."""
    with np.errstate(invalid="ignore"):  # NaN gives NaN
        total = np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    if_finite = logits - np.where(np.isinf(total), 0, total)
    return np.where(total == np.inf, np.nan, if_finite)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the softmax; zeros in a row of -inf."""
    return np.exp(_log_softmax(logits))
