"""Draw the mask, version 1. Only this wing draws random bits.

Specification. A mask is a function of a key, a rate and a shape. All integers are unsigned.

1. Threshold. Round the rate to float32 and subtract it from 1 in float32; let q be the result, and
   T = rint(q * 2^32), an integer from 0 to 2^32 (64 bits wide, and always a multiple of 2^8). An
   element is kept with probability T / 2^32. If T = 2^32 (the float32 rate is at most 2^-25) every
   element is kept and no plane is drawn. If T = 0 (the float32 rate is 1) none is.
   The ops give y = x * s where an element is kept, and 0 where it is not, NaN and infinity
   included. The scale is s = 1 / q, rounded to float32 (to float64 for an x of float64); the
   product is computed in that precision and rounded to the dtype of x. A known rate outside [0, 1]
   is an error. A traced one, or NaN, has a mask that keeps everything, and ops give NaN for it.
2. Seed. The key is folded: key' = jax.random.fold_in(key, 0x64726F70) ("drop"), so that a mask is
   drawn under another key than what its caller derives from the key. A threefry2x32 key' is two
   words, K0 and K1. A key' of another implementation is reduced to two: jax.random.bits(key', (2,),
   uint32). (For threefry2x32, fold_in(key, n) is the block Threefry(key, counter = (0, n)).)
3. Packed axis. The shape is that of the whole array, and axes in broadcast_dims have length 1 in
   it. If it has three axes or more and the second-to-last is at least 32 long, that one is packed.
   Else, if it has an axis and the last is at least 32 long, that one is. Else the array is flat:
   one axis of all its elements in C order, which is packed. (Axes of length 1 count as axes.)
4. Words. The words of 32 bits form an array of the shape of the mask (of the flat array, if it is
   flat) in which the packed axis of n places has ceil(n / 32). Bit i (of value 2^i) of the word at
   w along it belongs to place 32 w + i; bits of places from n on are not used. The column of a word
   is its index along the last axis of the array of words, and its row the linear index, in C order,
   over the other axes: 0 if there is no other.
5. Planes. Each word has 16 planes, words too. For p from 0 to 7, planes 2p and 2p + 1 are the two
   output words of Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror and Shaw, "Parallel random
   numbers: as easy as 1, 2, 3", 2011), key (K0, K1), counter (row, 8 column + p).
6. Number. The element at bit i of a word has a number u of 32 bits. Its high half is its own: bit
   16 + j of u is bit i of plane j, for j from 0 to 15. Its low half is borrowed from its neighbours
   in the word: bit 15 - k of u is bit (i + 1 + k) mod 32 of plane 0, for k from 0 to 15. The
   element is kept if u + T >= 2^32, in 64 bits.

Step 6 for all 32 elements of a word at once, if T < 2^32: M = 0; for each bit b of T from 0 to 31,
M = M | P if it is 1, else M & P, where P is plane 0 rotated right by 16 - b for b < 16, and plane b
- 16 from there on. The elements whose bit of M is 1 are kept. (Until the lowest 1 of T, M stays 0:
rate 0.5 needs one plane, and the rotations of b < 8 are never needed.)

Properties. Row and column count over the whole array, so a mask does not depend on sharding, and
any tile of it can be drawn alone. Masks of one key and shape are nested: an element kept at one
rate is kept at every lower rate. Elements of different words are independent. Two elements of one
word have a covariance below 2^-32 in absolute value: a borrowed bit decides only where all 16 own
bits of an element tie with those of T, one time in 2^16, and the two then depend on each other only
where 15 own bits of the other tie as well. (No two borrow from each other, as the bits of T below 8
are 0.)

Sizes. No counter wraps with at most 2^32 rows and 2^29 columns of words. So a flat array and a
packed last axis have at most 2^34 places, and a last axis beside a packed one 2^29. A part of an
array that begins at index r of axis 0 (`row_offset`) has the rows of the whole from there on, or,
if the whole is flat, its elements; the part has the packed axis of the whole, as axis 0 of an array
of two axes or more does not choose it. Larger sizes and offsets are refused where they are known.

Known answers. The first four u, in C order, of the shape (2, 40) and jax.random.key(0), whose words
are (0, 0): a70f320a 89a86414 0c7ac829 1a1b9053, in hexadecimal. The words of a key, a shape, a
rate, and the array of words of the mask in C order, with the unused bits set to 0::

    (0, 0)  (2, 40)     0.1   f7ffff7b 000000ff fbbfffbf 000000fb
    (0, 0)  (2, 40)     0.3   177f5473 000000fb f39effae 000000d9
    (0, 0)  (2, 40)     0.75  02210400 0000002a 810a0500 00000059
    (0, 0)  (1, 40, 3)  0.1   f7ffff7b fffeffff ffcffb7f 000000bf 000000fb 000000fe
    (0, 0)  (1, 40, 3)  0.3   177f5473 f6eadffb bfcfeb7e 000000ae 000000d9 000000da
    (0, 0)  (1, 40, 3)  0.75  02210400 2008492a 1dc0c000 00000000 00000059 00000010
    (1, 2)  (5, 7)      0.3   67a9ddfc 00000005
    (1, 2)  (2, 32, 2)  0.3   67a9ddfc ec3fdd6d f327b0ec d7dbdbc9
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from dropout_jax import _validation
from dropout_jax.random._packing import (
    WORD,
    as_uint32,
    candidate_axes,
    locate_element,
    packed_axis,
    unpack_along_packed_axis,
    unpack_mask,
    word_count,
    word_counters,
    words_shape,
)
from dropout_jax.random._threefry import fold_in, threefry2x32

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32, Integer, Key, UInt32

FOLD = 0x64726F70  # "drop" in ASCII
NOISE_FOLD = 0x6E6F6973  # "nois"
PAIRS = 8  # of planes
BORROWED = 8  # bits of T / 2^8 below those of the planes
ONE = 1 << 24  # T / 2^8 of a mask that keeps everything
MAX_ROWS = 1 << 32  # of words, and columns: beyond, a counter wraps
MAX_COLUMNS = 1 << 29


def keep_mask(
    key: jax.Array,
    rate: ArrayLike,
    shape: Sequence[int],
    *,
    broadcast_dims: Sequence[int] = (),
    row_offset: ArrayLike | None = None,
) -> Bool[Array, "..."]:
    """Draw the mask that `dropout` with the same key, rate and shape applies: True is kept.

    Formula: each element is kept with probability 1 - rate, by the specification in the docstring
    of this module. Elements along `broadcast_dims` share one decision. With `row_offset`, the
    result is the rows row_offset, row_offset + 1, ... of the mask of a larger array.

    Args:
      key: one PRNG key, typed or raw. (There is no mask at evaluation: None is an error.)
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not. A
        traced rate outside [0, 1] keeps everything (the ops return NaN for it).
      shape: the shape of the array that the mask is for.
      broadcast_dims: axes along which the mask is the same; negative numbers count from the last.
      row_offset: the index, along axis 0 of a larger array, of the first row of this one; an
        integer, traced or not. Parts of a batch then have the masks of the batch.

    Returns:
      A bool array of `shape`, with size 1 on the axes in `broadcast_dims`.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: docstring of `dropout_jax.random`; Threefry is Salmon et al., SC 2011.

    Example:
      >>> import jax
      >>> from dropout_jax import keep_mask
      >>> keep_mask(jax.random.key(0), 0.5, (2, 4)).astype(int)
      Array([[1, 1, 0, 0],
             [1, 1, 1, 0]], dtype=int32)
    """
    typed_key = _validation.check_key(key)
    if typed_key is None:
        raise TypeError(
            "key=None is not allowed: key must be one PRNG key. There is no mask at evaluation; "
            "pass jax.random.key(seed)."
        )
    rate = _validation.check_rate(rate)
    shape = _validation.check_shape(shape)
    shared_axes = _validation.check_axes(broadcast_dims, len(shape))
    offset = check_row_offset(row_offset, shape, shared_axes)
    sizes = mask_shape(shape, shared_axes)
    return _draw_mask(typed_key, rate_array(rate), sizes, offset, lowest_bit(rate))


def check_row_offset(
    value: ArrayLike | None,
    shape: tuple[int, ...],
    shared_axes: tuple[int, ...] = (),
    name: str = "row_offset",
) -> UInt32[Array, ""] | None:
    """Return the offset, or None where axis 0 shares its decisions and every part has them all.

    A known offset at which a counter would wrap is an error.
    """
    largest = _largest_row_offset(mask_shape(shape, shared_axes))
    offset = _validation.check_row_offset(value, shape, largest, name)
    return None if 0 in shared_axes else offset


def _largest_row_offset(shape: tuple[int, ...]) -> int:
    """Return the largest offset at which no counter wraps; symbolic sizes are not known."""
    try:
        words = words_shape(shape, packed_axis(shape))
    except jax.errors.InconclusiveDimensionOperation:
        return MAX_ROWS - 1
    if len(words) == 1:
        limit, per_row = MAX_COLUMNS * WORD, math.prod(shape[1:])
    else:
        limit, per_row = MAX_ROWS, math.prod(words[1:-1])
    if not shape or any(jax.export.is_symbolic_dim(size) for size in (per_row, shape[0])):
        return MAX_ROWS - 1
    return max(min(limit // max(per_row, 1) - shape[0], MAX_ROWS - 1), 0)


def mask_shape(shape: tuple[int, ...], shared_axes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape with size 1 on the axes (from 0) along which the mask is shared."""
    return tuple(1 if axis in shared_axes else size for axis, size in enumerate(shape))


@functools.partial(jax.jit, static_argnames=("shape", "lowest"))
def _draw_mask(
    key: Key[Array, ""],
    rate: Float32[Array, ""],
    shape: tuple[int, ...],
    row_offset: UInt32[Array, ""] | None,
    lowest: int,
) -> Bool[Array, "..."]:
    words = draw_packed_mask(mask_params(key, rate), shape, row_offset, lowest=lowest)
    return unpack_mask(words, shape)


def rate_array(rate: float | Float32[Array, ""]) -> Float32[Array, ""]:
    """Convert a checked rate, by an explicit transfer, which jax.transfer_guard allows."""
    return rate if isinstance(rate, jax.Array) else _validation.put_number(rate, np.float32)


def threshold(rate: Float32[Array, ""]) -> UInt32[Array, ""]:
    """Return T / 2^8 of the specification; an invalid traced rate keeps all (its scale is NaN)."""
    return jnp.where(is_valid_rate(rate), (1 - rate) * ONE, ONE).astype(jnp.uint32)


def is_valid_rate(rate: Float32[Array, ""]) -> Bool[Array, ""]:
    """Whether a traced rate is in [0, 1]; NaN is not."""
    return (rate >= 0) & (rate <= 1)


def lowest_bit(rate: float | Float32[Array, ""]) -> int:
    """Return the first bit of T / 2^8 that matters if the rate is known, else 0.

    It is static: 0 if a borrowed bit matters, else the even one of a pair of planes; 24, no plane,
    for T = 0 and T = 2^32. So changing rates make few programs.
    """
    if isinstance(rate, jax.Array):
        return 0
    known = int((np.float32(1) - np.float32(rate)) * np.float32(ONE)) or ONE
    lowest = (known & -known).bit_length() - 1
    return lowest // 2 * 2 if lowest >= BORROWED else 0


class MaskParams(NamedTuple):
    """What decides a mask, apart from its shape: the two words of the seed, and T / 2^8."""

    seed: tuple[UInt32[Array, ""], UInt32[Array, ""]]
    threshold: UInt32[Array, ""]


def mask_params(key: Key[Array, ""], rate: Float32[Array, ""]) -> MaskParams:
    """Compute the parameters of the mask of a key and a rate."""
    return MaskParams(_derive_seed(key, FOLD), threshold(rate))


def draw_packed_mask(
    params: MaskParams,
    shape: tuple[int, ...],
    row_offset: UInt32[Array, ""] | None = None,
    *,
    lowest: int = 0,
) -> UInt32[Array, "..."] | Bool[Array, "..."]:
    """Draw the mask in words, which `unpack_mask` unpacks.

    `row_offset` is the index, along axis 0 of a larger array, of the first row. Bits of T / 2^8
    below `lowest` are 0, and their planes are not drawn. Where a symbolic size of jax.export
    chooses the packed axis, the result is the mask already unpacked.
    """
    combine = functools.partial(_combine_planes, params, lowest=lowest)
    try:
        return _draw_words(combine, shape, packed_axis(shape), row_offset)
    except jax.errors.InconclusiveDimensionOperation:
        return _draw_along_chosen_axis(combine, shape, row_offset)


def _draw_along_chosen_axis(
    combine: Callable, shape: tuple[int, ...], row_offset: UInt32[Array, ""] | None
) -> Bool[Array, "..."]:
    """Draw the mask along the packed axis that the sizes choose when the program runs."""

    def draw(axis):
        return unpack_along_packed_axis(_draw_words(combine, shape, axis, row_offset), shape, axis)

    def choose(axes):
        if not axes:
            return draw(None)
        first, *others = axes
        is_long = jnp.asarray(shape[first]) >= WORD
        return lax.cond(is_long, lambda: draw(first), lambda: choose(others))

    return choose(candidate_axes(shape))


def _draw_words(
    combine: Callable,
    shape: tuple[int, ...],
    axis: int | None,
    row_offset: UInt32[Array, ""] | None,
) -> UInt32[Array, "..."]:
    words = words_shape(shape, axis)
    _check_sizes(shape, words)
    if row_offset is None:
        return combine(lambda: word_counters(words))
    if len(words) == 1:
        return _draw_flat_words(combine, row_offset, math.prod(shape[1:]), words[0])
    rows_before = row_offset * as_uint32(math.prod(words[1:-1]))

    def counters():
        row, column = word_counters(words)
        return row + rows_before, column

    return combine(counters)


def _check_sizes(shape: tuple[int, ...], words: tuple[int, ...]) -> None:
    """Refuse a mask whose counters would wrap; symbolic sizes are not known."""
    rows, columns = math.prod(words[:-1]), words[-1]
    if any(jax.export.is_symbolic_dim(size) for size in (rows, columns)):
        return
    if rows > MAX_ROWS or columns > MAX_COLUMNS:
        _validation.fail(
            ValueError,
            "shape",
            shape,
            "at most 2^32 rows and 2^29 columns of words, as the specification counts them",
            "Split the array and give each part its own key.",
        )


def _draw_flat_words(
    combine: Callable, row_offset: UInt32[Array, ""], size: int, count: int
) -> UInt32[Array, " words"]:
    """Draw `count` words of a flat mask whose rows have `size` elements, from any row on."""
    first_word, shift = locate_element(row_offset, size)

    def counters():
        row, column = word_counters((count + 1,))
        return row, column + first_word

    words = combine(counters)
    high = jnp.where(shift == 0, jnp.uint32(0), words[1:] << ((WORD - shift) % WORD))
    return (words[:-1] >> shift) | high


def draw_packed_tile(
    params: MaskParams,
    index: UInt32[Array, "*lead"],
    sizes: tuple[int, int],
    rows: tuple[int | Integer[Array, ""], int],
    columns: tuple[int | Integer[Array, ""], int],
    *,
    in_kernel: bool = False,
    is_transposed: bool = False,
) -> UInt32[Array, "*lead _ _"]:
    """Draw a tile of the last two axes of a mask in words, which `unpack_tile` unpacks.

    `index` is linear over the leading axes of a mask whose last two axes have `sizes`. `rows` and
    `columns` are (first, count); along the packed axis, first is a multiple of 32.
    """
    combine = functools.partial(_combine_in_kernel if in_kernel else _combine_planes, params)
    (first_row, row_count), (first_column, column_count) = rows, columns
    axis, size = packed_axis((1, *sizes)), sizes[0]
    if axis is None:
        return _draw_flat_tile(combine, index, sizes, rows, columns, is_transposed)
    if axis == 1:
        first_row, row_count, size = first_row // WORD, word_count(row_count), word_count(size)
    else:
        first_column, column_count = first_column // WORD, word_count(column_count)

    def counters():
        row, column = _build_tile_iotas(index, (row_count, column_count), is_transposed)
        first = index[..., None, None] * jnp.uint32(size) + jnp.uint32(first_row)
        return first + row, column + jnp.uint32(first_column)

    return combine(counters)


def _draw_flat_tile(
    combine: Callable,
    index: UInt32[Array, "*lead"],
    sizes: tuple[int, int],
    rows: tuple[int | Integer[Array, ""], int],
    columns: tuple[int | Integer[Array, ""], int],
    is_transposed: bool,
) -> UInt32[Array, "*lead _ _"]:
    """Draw the tile of a flat mask, whose rows are shorter than a word: a word for each element."""

    def locate():
        row, column = _build_tile_iotas(index, (rows[1], columns[1]), is_transposed)
        row, column = row + jnp.uint32(rows[0]), column + jnp.uint32(columns[0])
        word, bit = locate_element(index[..., None, None], sizes[0] * sizes[1])
        bit = bit + row * jnp.uint32(sizes[1]) + column
        return word + bit // WORD, bit % WORD

    def counters():
        column, _ = locate()
        return jnp.zeros_like(column), column

    return combine(counters) >> locate()[1]


def _build_tile_iotas(
    index: UInt32[Array, "*lead"], counts: tuple[int, int], is_transposed: bool
) -> tuple[UInt32[Array, "*lead _ _"], UInt32[Array, "*lead _ _"]]:
    """Return the row and the column of every word of a tile."""
    shape = (*index.shape, *(counts[::-1] if is_transposed else counts))
    first, second = (lax.broadcasted_iota(jnp.uint32, shape, index.ndim + n) for n in (0, 1))
    return (second, first) if is_transposed else (first, second)


def _combine_planes(
    params: MaskParams, counters: Callable, *, lowest: int = 0
) -> UInt32[Array, "..."]:
    """Combine the planes of the words at `counters()`."""
    in_conditional, alone = (
        functools.partial(combine, params, counters, lowest)
        for combine in (_combine_in_conditional, _combine_on_gpu)
    )
    return lax.platform_dependent(cuda=alone, default=in_conditional)


def _combine_in_conditional(
    params: MaskParams, counters: Callable, lowest: int
) -> UInt32[Array, "..."]:
    # The barrier hides a constant, so that the conditional stays one: XLA then materialises the
    # words once, and does not compute them again in each of the 32 elements that it would fuse them
    # into. The counters are computed inside, or they would be arrays in memory.
    keep = lax.optimization_barrier(params.threshold)
    opaque = params._replace(threshold=keep)

    def keep_all():
        return ~_build_zeros(opaque, *counters())

    def draw():
        return _draw_planes(opaque, *counters(), lowest=lowest, divide=lax.optimization_barrier)

    return lax.cond(keep == ONE, keep_all, draw)


def _combine_on_gpu(params: MaskParams, counters: Callable, lowest: int) -> UInt32[Array, "..."]:
    # On a GPU a conditional waits for the host, and words that 32 elements use are one kernel
    # without it. Where a counter depends on one axis, XLA would compute the first rounds along that
    # axis, in a kernel for each plane; this one depends on both.
    row, column = counters()
    both = row ^ column
    words = _combine_in_kernel(params, lambda: (both ^ column, both ^ row), lowest)
    return lax.optimization_barrier(words)


def _combine_in_kernel(
    params: MaskParams, counters: Callable, lowest: int = 0
) -> UInt32[Array, "..."]:
    """Combine the planes without a conditional, which a kernel cannot have."""
    planes = _draw_planes(params, *counters(), lowest=lowest)
    return _spread_bit(params.threshold >> 24) | planes


def _build_zeros(
    params: MaskParams, row: UInt32[Array, "*words"], column: UInt32[Array, "*words"]
) -> UInt32[Array, "*words"]:
    """Return zeros of the type of the planes, which may vary by device under shard_map."""
    return (row ^ column ^ params.threshold ^ params.seed[0]) & 0


def _draw_planes(
    params: MaskParams,
    row: UInt32[Array, "*words"],
    column: UInt32[Array, "*words"],
    *,
    lowest: int = 0,
    divide: Callable = lambda mask: mask,
) -> UInt32[Array, "*words"]:
    """Combine the planes from the lowest that matters upward; T = 2^32 gives 0.

    `divide` is a barrier in the middle: one kernel of eight evaluations spills registers on a TPU.
    """
    mask = _build_zeros(params, row, column)
    for pair in range(max(lowest - BORROWED, 0) // 2, PAIRS):
        mask = divide(mask) if pair == PAIRS // 2 else mask
        counter = row, column * PAIRS + jnp.uint32(pair)
        even, odd = threefry2x32(params.seed, counter)
        if pair == 0:
            mask = _combine_borrowed(mask, even, params.threshold, lowest)
        bit = BORROWED + 2 * pair
        bits = params.threshold >> bit, params.threshold >> (bit + 1)
        mask = _combine_pair(mask, (even, odd), bits)
    return mask


@jax.jit  # traced once for its eight calls in a mask, on each platform
def _combine_pair(
    mask: UInt32[Array, "*words"],
    planes: tuple[UInt32[Array, "*words"], UInt32[Array, "*words"]],
    bits: tuple[UInt32[Array, ""], UInt32[Array, ""]],
) -> UInt32[Array, "*words"]:
    """Combine two planes with the lowest of their bits."""
    for plane, bit in zip(planes, bits, strict=True):
        mask = _combine_plane(mask, plane, bit)
    return mask


@functools.partial(jax.jit, static_argnames="lowest")
def _combine_borrowed(
    mask: UInt32[Array, "*words"],
    plane: UInt32[Array, "*words"],
    threshold: UInt32[Array, ""],
    lowest: int,
) -> UInt32[Array, "*words"]:
    """Combine the rotated copies of plane 0 for the bits from `lowest` up to those of planes."""
    for bit in range(lowest, BORROWED):
        mask = _combine_plane(mask, _rotate_right(plane, BORROWED - bit), threshold >> bit)
    return mask


def _rotate_right(word: UInt32[Array, "*words"], distance: int) -> UInt32[Array, "*words"]:
    return (word >> distance) | (word << (WORD - distance))


def _spread_bit(bit: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return all ones if the lowest bit is 1, else all zeros."""
    return -(bit & 1)


def _combine_plane(
    mask: UInt32[Array, "*words"], plane: UInt32[Array, "*words"], bit: UInt32[Array, ""]
) -> UInt32[Array, "*words"]:
    """Return mask | plane if the bit is 1, else mask & plane: a majority vote of three."""
    return (mask & plane) | (_spread_bit(bit) & (mask | plane))


def _derive_seed(key: Key[Array, ""], fold: int) -> tuple[UInt32[Array, ""], UInt32[Array, ""]]:
    """Derive the two words K0 and K1 of the specification from a fold of the key."""
    # Draws nothing. It marks the key as used for jax.debug_key_reuse, which fold_in does not.
    jax.random.bits(key, (0,), jnp.uint32)
    if jax.random.key_impl(key) == "threefry2x32":
        words = jax.random.key_data(fold_in(key, fold))
    else:
        words = _reduce_to_two_words(key, fold)
    return words[0], words[1]


def _reduce_to_two_words(key: Key[Array, ""], fold: int) -> UInt32[Array, "2"]:
    # JAX's own vmap of rbg keys draws other bits than a loop does, so this one loops.
    @jax.custom_batching.sequential_vmap
    def fold_and_draw(key):
        return jax.random.bits(jax.random.fold_in(key, fold), (2,), jnp.uint32)

    return fold_and_draw(key)


def draw_noise_words(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    """Draw one word per element by the specification of the noise (see `_noise.py`)."""
    return threefry2x32(_derive_seed(key, NOISE_FOLD), word_counters(shape or (1,)))[0]
