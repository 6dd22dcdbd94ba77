"""Draw the mask, version 1. Only this wing draws random bits.

Specification. A mask is a function of a key, a rate and a shape. All integers are unsigned and
32 bits wide, and arithmetic on them is modulo 2^32.

1. Threshold. T = rint((1 - rate) * 2^16), an integer from 0 to 2^16, where rate is first rounded to
   float32, the subtraction is rounded to float32, and rint rounds halves to even. An element is
   kept with probability T / 2^16, and a kept element is multiplied by 2^16 / T, so that the
   expectation is exact. A rate below 1 whose T is 0 is an error if the rate is known, and takes
   T = 1 if it is traced. A traced rate outside [0, 1] gives NaN.
2. Seed. The key is folded: key' = jax.random.fold_in(key, 0x64726F70) ("drop"), so that no word of
   a mask equals a word of a child key. A threefry2x32 key' is two words, K0 and K1. A key' of
   another implementation is reduced to two: jax.random.bits(key', (2,), uint32).
   (For threefry2x32, fold_in(key, n) is the block Threefry(key, counter = (0, n)).)
3. Shape. Axes in broadcast_dims count as length 1. If there is no axis, or the last one is then
   shorter than 32, the array is taken flat: one row of all its elements in C order. Otherwise the
   rows run along the last axis, and `row` is the linear index, in C order, over the other axes.
4. Words. A row of D elements has ceil(D / 32) words; bit i (of value 2^i) of word w belongs to
   element 32 w + i. Bits beyond D are not used.
5. Planes. There are 16 planes of words. For p from 0 to 7, planes 2p and 2p + 1 of the word w of a
   row are the two output words of Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror and Shaw,
   "Parallel random numbers: as easy as 1, 2, 3", 2011), key (K0, K1), counter (row, 8 w + p).
6. Combination. The mask word M starts as 0, or as 2^32 - 1 if T = 2^16. For j from 0 to 15:
   M = M | plane_j if bit j of T is 1, else M = M & plane_j. An element is kept if its bit of M
   is 1. (Planes below the lowest set bit of T leave M at 0 and need not be drawn. Equivalently:
   with u the 16-bit number whose bit j is the element's bit of plane j, it is kept if
   u + T >= 2^16.)

Three properties follow. Row and word are global indices, so a mask does not depend on the layout or
the sharding of an array, and any tile of it can be drawn alone. For one key and shape the masks are
nested: an element kept at one rate is kept at every lower rate. Nothing wraps below 2^32 rows of
2^34 elements.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dropout_jax import _validation
from dropout_jax.random._threefry import fold_in, threefry2x32

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32, Int, Key, UInt32

FOLD = 0x64726F70  # "drop" in ASCII
NOISE_FOLD = 0x6E6F6973  # "nois"
WORD = 32  # elements per word
PLANES = 16
ONE = 1 << PLANES  # the threshold that keeps everything


def keep_mask(
    key: jax.Array,
    rate: ArrayLike,
    shape: Sequence[int],
    *,
    broadcast_dims: Sequence[int] = (),
    row_offset: ArrayLike | None = None,
) -> Bool[Array, "..."]:
    """Draw the mask that `dropout` with the same key, rate and shape applies: True is kept.

    Formula: each element is kept with probability T / 2^16, T = rint((1 - rate) * 2^16), by the
    specification in the docstring of this module. Elements along `broadcast_dims` share one
    decision. With `row_offset`, the result is the rows row_offset, row_offset + 1, ... of the mask
    of a larger array.

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
    rate = jnp.float32(_validation.check_rate(rate))
    shape = _validation.check_shape(shape)
    shared_axes = _validation.check_axes(broadcast_dims, len(shape))
    shape = mask_shape(shape, shared_axes)
    offset = resolve_row_offset(_validation.check_row_offset(row_offset, shape), shared_axes)
    return _draw_mask(typed_key, rate, shape, offset)


def resolve_row_offset(
    row_offset: UInt32[Array, ""] | None, shared_axes: tuple[int, ...]
) -> UInt32[Array, ""] | None:
    """Return the offset, or None where axis 0 shares its decisions and every part has them all."""
    return None if 0 in shared_axes else row_offset


def mask_shape(shape: tuple[int, ...], shared_axes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape with size 1 on the axes (from 0) along which the mask is shared."""
    return tuple(1 if axis in shared_axes else size for axis, size in enumerate(shape))


@functools.partial(jax.jit, static_argnames="shape")
def _draw_mask(
    key: Key[Array, ""],
    rate: Float32[Array, ""],
    shape: tuple[int, ...],
    row_offset: UInt32[Array, ""] | None,
) -> Bool[Array, "..."]:
    return unpack_mask(draw_packed_mask(key, rate, shape, row_offset), shape)


def threshold(rate: Float32[Array, ""]) -> UInt32[Array, ""]:
    """Return T of the specification; an invalid traced rate keeps all (its scale is NaN)."""
    rounded = jnp.rint((1 - rate) * ONE)
    at_least_one = jnp.where(rate < 1, jnp.maximum(rounded, 1), rounded)
    return jnp.where(is_valid_rate(rate), at_least_one, ONE).astype(jnp.uint32)


def is_valid_rate(rate: Float32[Array, ""]) -> Bool[Array, ""]:
    """Whether a traced rate is in [0, 1]; NaN is not."""
    return (rate >= 0) & (rate <= 1)


class MaskParams(NamedTuple):
    """What decides a mask, apart from its shape: the two words of the seed, and T."""

    seed: tuple[UInt32[Array, ""], UInt32[Array, ""]]
    threshold: UInt32[Array, ""]


def mask_params(key: Key[Array, ""], rate: Float32[Array, ""]) -> MaskParams:
    """Compute the parameters of the mask of a key and a rate."""
    return MaskParams(_derive_seed(key, FOLD), threshold(rate))


def draw_packed_mask(
    key: Key[Array, ""],
    rate: Float32[Array, ""],
    shape: tuple[int, ...],
    row_offset: UInt32[Array, ""] | None = None,
) -> UInt32[Array, "*rows words"]:
    """Draw the mask as words of 32 elements; the last axis of the result counts words.

    `row_offset` is the index, along axis 0 of a larger array, of the first row.
    """
    lead, width = _split_rows(shape)
    words, params = (*lead, _word_count(width)), mask_params(key, rate)
    if row_offset is None:
        return _combine_planes(params, words, lambda: _word_counters(words))
    if lead:
        rows_before = row_offset * jnp.uint32(math.prod(lead[1:]))

        def counters():
            row, word = _word_counters(words)
            return row + rows_before, word

        return _combine_planes(params, words, counters)
    return _draw_flat_words(params, row_offset * jnp.uint32(math.prod(shape[1:])), words[0])


def _draw_flat_words(
    params: MaskParams, first_element: UInt32[Array, ""], count: int
) -> UInt32[Array, " words"]:
    """Draw `count` words of a flat mask from any element on, also from within a word."""

    def counters():
        row, word = _word_counters((count + 1,))
        return row, word + first_element // WORD

    words, shift = _combine_planes(params, (count + 1,), counters), first_element % WORD
    high = jnp.where(shift == 0, jnp.uint32(0), words[1:] << ((WORD - shift) % WORD))
    return (words[:-1] >> shift) | high


def draw_packed_rows(
    params: MaskParams,
    row: UInt32[Array, "*rows"],
    width: int,
    first_column: int | Int[Array, ""],
    count: int,
    *,
    unrolled: bool = False,
) -> UInt32[Array, "*rows words"]:
    """Draw the words of `count` columns of some rows of a mask; `unpack_rows` unpacks them.

    `row` holds linear indices over the leading axes of the mask, whose last axis is `width` long.
    `first_column` is a multiple of 32. `unrolled` avoids a loop, which a kernel cannot have.
    """
    combine = _combine_planes_unrolled if unrolled else _combine_planes
    if width < WORD:
        return _draw_short_rows(params, row, width, combine)
    words = (*row.shape, _word_count(count))

    def counters():
        word = lax.broadcasted_iota(jnp.uint32, words, row.ndim)
        return jnp.broadcast_to(row[..., None], words), word + jnp.uint32(first_column // WORD)

    return combine(params, words, counters)


def _draw_short_rows(
    params: MaskParams, row: UInt32[Array, "*rows"], width: int, combine: Callable
) -> UInt32[Array, "*rows 1"]:
    """Draw one word for each row of a flat mask of rows shorter than a word: bit s is column s."""
    # 32 rows take `width` words. `bit` is the offset of the row after a multiple of 32 rows.
    bit = (row % WORD) * jnp.uint32(width)
    word = (row // WORD) * jnp.uint32(width) + bit // WORD

    def draw_word(index):
        counters = jnp.zeros_like(index), index
        return combine(params, index.shape, lambda: counters)

    word, shift = word[..., None], (bit % WORD)[..., None]
    high = draw_word(word + 1) << ((WORD - shift) % WORD)
    return (draw_word(word) >> shift) | jnp.where(shift == 0, jnp.uint32(0), high)


def _combine_planes(
    params: MaskParams, words: tuple[int, ...], counters: Callable
) -> UInt32[Array, "..."]:
    """Combine the planes of the words at `counters()`."""
    # The barrier hides a constant T, so the loop stays a loop: XLA then materialises the words
    # once, and does not compute them again in each of the 32 elements that it would fuse them into.
    keep = lax.optimization_barrier(params.threshold)
    lowest_bit = lax.population_count(~keep & (keep - 1)).astype(jnp.int32)
    first_turn = jnp.where(keep >= ONE, PLANES, lowest_bit) // 4

    def combine_four_planes(turn, mask):
        counter = counters()  # inside the loop, or XLA would keep them in memory
        pair = 2 * turn.astype(jnp.uint32)
        mask = _combine_two_planes(params.seed, keep, counter, pair, mask)
        return _combine_two_planes(params.seed, keep, counter, pair + 1, mask)

    # "& 0" gives the initial mask the type of the key, which may vary by device under shard_map.
    initial = jnp.broadcast_to(_spread_bit(keep >> PLANES) | (params.seed[0] & 0), words)
    return lax.fori_loop(first_turn, PLANES // 4, combine_four_planes, initial)


def _combine_planes_unrolled(
    params: MaskParams, words: tuple[int, ...], counters: Callable
) -> UInt32[Array, "..."]:
    counter, mask = counters(), jnp.zeros(words, jnp.uint32)
    for pair in range(PLANES // 2):
        index = jnp.uint32(pair)
        mask = _combine_two_planes(params.seed, params.threshold, counter, index, mask)
    return mask | _spread_bit(params.threshold >> PLANES)


def _combine_two_planes(
    seed: tuple[UInt32[Array, ""], UInt32[Array, ""]],
    keep: UInt32[Array, ""],
    counter: tuple[UInt32[Array, "*#words"], UInt32[Array, "*#words"]],
    pair: UInt32[Array, ""],
    mask: UInt32[Array, "*words"],
) -> UInt32[Array, "*words"]:
    """Combine the planes 2 pair and 2 pair + 1, which one evaluation of Threefry gives."""
    row, word = counter
    even, odd = threefry2x32(seed, (row, word * (PLANES // 2) + pair))
    mask = _combine_plane(mask, even, keep >> (2 * pair))
    return _combine_plane(mask, odd, keep >> (2 * pair + 1))


def unpack_mask(words: UInt32[Array, "*rows words"], shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Unpack words into a bool array of the shape of the mask."""
    _, width = _split_rows(shape)
    if _is_flat(shape) and width <= 1 << 32:
        return _look_up_bits(words, shape)
    return unpack_rows(words, width).reshape(shape)


def unpack_rows(words: UInt32[Array, "*rows words"], width: int) -> Bool[Array, "*rows {width}"]:
    """Unpack the first `width` bits of rows of words."""
    bit = lax.broadcasted_iota(jnp.uint32, (*words.shape, WORD), words.ndim)
    bits = (words[..., None] >> bit) & 1
    return bits.reshape(*words.shape[:-1], words.shape[-1] * WORD)[..., :width] != 0


def _look_up_bits(words: UInt32[Array, " words"], shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Look up the bit of each element of a flat mask.

    (A reshape from words to elements would send words between devices. A flat mask has few words,
    and they are not sharded.)
    """
    lead, last = shape[:-1], math.prod(shape[-1:])
    row, column = _word_counters((*lead, last))
    element = row * jnp.uint32(last) + column
    bits = words.at[element // WORD].get(mode="promise_in_bounds") >> (element % WORD)
    return (bits & 1).reshape(shape) != 0


def _split_rows(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Split a shape into leading axes and row length; a short last axis makes one flat row."""
    return ((), math.prod(shape)) if _is_flat(shape) else (shape[:-1], shape[-1])


def _is_flat(shape: tuple[int, ...]) -> bool:
    return not shape or shape[-1] < WORD


def _word_count(width: int) -> int:
    return -(-width // WORD)


def _word_counters(
    shape: tuple[int, ...],
) -> tuple[UInt32[Array, "*words"], UInt32[Array, "*words"]]:
    """Compute the global row and word index of every word, as iotas without communication."""
    *lead, _ = shape
    row, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(lead))):
        row = row + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= lead[axis]
    return row, lax.broadcasted_iota(jnp.uint32, shape, len(lead))


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
    return threefry2x32(_derive_seed(key, NOISE_FOLD), _word_counters(shape or (1,)))[0]
