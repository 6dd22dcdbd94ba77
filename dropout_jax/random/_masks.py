"""The mask, version 1: the only place where random bits are made.

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
   is 1. (Planes below the lowest set bit of T leave M at 0 and need not be made. Equivalently:
   with u the 16-bit number whose bit j is the element's bit of plane j, it is kept if
   u + T >= 2^16.)

Plain facts that follow: row and word are global indices, so a mask does not depend on how an array
is laid out or sharded, and any tile of it can be made alone; a key and a shape give nested masks,
what is kept at one rate is kept at every lower one; nothing wraps below 2^32 rows of 2^34 elements.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dropout_jax import _validation
from dropout_jax.random._threefry import fold_in, threefry2x32

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, UInt32

FOLD = 0x64726F70  # "drop" in ASCII
NOISE_FOLD = 0x6E6F6973  # "nois"
WORD = 32  # elements to a word
PLANES = 16
ONE = 1 << PLANES  # the threshold that keeps everything


def keep_mask(key, rate, shape, *, broadcast_dims=(), start=None) -> Bool[Array, "..."]:
    """Draw the mask that `dropout` with the same key, rate and shape applies: True is kept.

    Formula: each element is kept with probability T / 2^16, T = rint((1 - rate) * 2^16), by the
    specification at the head of this module. Elements along `broadcast_dims` share one decision.
    With `start`, the rows start, start + 1, ... of the mask of a larger array of such rows.

    Args:
      key: one PRNG key, typed or raw. (There is no mask at evaluation: None is an error.)
      rate: the probability of dropping, in [0, 1]; a number or a scalar array, traced or not. A
        traced rate outside [0, 1] keeps everything (the ops return NaN for it).
      shape: the shape of the array the mask is for.
      broadcast_dims: axes along which the mask is the same; negative numbers count from the last.
      start: where along axis 0 of a larger array this one begins, an integer, traced or not; so
        parts of a batch have the masks of the batch.

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
    key = _validation.key(key)
    if key is None:
        raise TypeError(
            "key=None is not allowed: key must be one PRNG key. There is no mask at evaluation; "
            "make a key with jax.random.key(seed)."
        )
    rate = _validation.rate(rate)
    whole = _validation.shape(shape)
    shape = mask_shape(whole, broadcast_dims)
    return _keep_mask(key, jnp.float32(rate), shape, start_of(start, whole, broadcast_dims))


def start_of(start, shape: tuple[int, ...], broadcast_dims) -> UInt32[Array, ""] | None:
    """The first row of a part of a larger array; None where axis 0 shares its decisions."""
    start = _validation.start(start)
    if start is not None and not shape:
        _validation.fail(
            ValueError, "start", start, "None for an array without axes", "Leave it out."
        )
    return None if 0 in _validation.axes(broadcast_dims, len(shape)) else start


def mask_shape(shape: tuple[int, ...], broadcast_dims) -> tuple[int, ...]:
    """The shape with size 1 on the axes along which the mask is shared."""
    shared = _validation.axes(broadcast_dims, len(shape))
    return tuple(1 if axis in shared else size for axis, size in enumerate(shape))


@functools.partial(jax.jit, static_argnames="shape")
def _keep_mask(key, rate, shape, start):
    return unpack(packed_mask(key, rate, shape, start), shape)


def threshold(rate: Float[Array, ""]) -> UInt32[Array, ""]:
    """T of the specification; a traced rate outside [0, 1] keeps all (the scale is then NaN)."""
    rounded = jnp.rint((1 - rate) * ONE)
    at_least_one = jnp.where(rate < 1, jnp.maximum(rounded, 1), rounded)
    return jnp.where(in_range(rate), at_least_one, ONE).astype(jnp.uint32)


def in_range(rate: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether a traced rate is in [0, 1]; NaN is not."""
    return (rate >= 0) & (rate <= 1)


class Dice(NamedTuple):
    """All that decides a mask but its shape: the seed's two words, and the threshold T."""

    seed: tuple[UInt32[Array, ""], UInt32[Array, ""]]
    keep: UInt32[Array, ""]


def dice(key, rate: Float[Array, ""]) -> Dice:
    """The dice of a key and a rate."""
    return Dice(_seed(key, FOLD), threshold(rate))


def packed_mask(
    key, rate: Float[Array, ""], shape: tuple[int, ...], start: UInt32[Array, ""] | None = None
) -> UInt32[Array, "..."]:
    """The mask as words, 32 elements to each: the last axis of the result counts words.

    `start` is the row along axis 0 of a larger array at which this one begins.
    """
    lead, width = _rows(shape)
    words, dice_ = (*lead, _word_count(width)), dice(key, rate)
    if start is None:
        return _draw(dice_, words, lambda: _counters(words))
    if lead:
        before = start * jnp.uint32(math.prod(lead[1:]))

        def counters():
            row, word = _counters(words)
            return row + before, word

        return _draw(dice_, words, counters)
    return _flat_from(dice_, start * jnp.uint32(math.prod(shape[1:])), words[0])


def _flat_from(dice_: Dice, element, count: int):
    """Words of a flat mask from an element on, which need not begin a word of it."""

    def counters():
        row, word = _counters((count + 1,))
        return row, word + element // WORD

    words, shift = _draw(dice_, (count + 1,), counters), element % WORD
    high = jnp.where(shift == 0, jnp.uint32(0), words[1:] << ((WORD - shift) % WORD))
    return (words[:-1] >> shift) | high


def row_words(
    dice_: Dice, row: UInt32[Array, "*rows"], width: int, first, count: int, *, unrolled=False
) -> UInt32[Array, "*rows words"]:
    """The words of `count` columns from `first` on, of some rows of a mask; see unpack_rows.

    `row` holds linear indices over the leading axes of the mask, whose last one is `width` long;
    `first` is a multiple of 32. In a kernel, `unrolled` does without a loop.
    """
    draw = _draw_unrolled if unrolled else _draw
    if width < WORD:
        return _short_rows(dice_, row, width, draw)
    words = (*row.shape, _word_count(count))

    def counters():
        word = lax.broadcasted_iota(jnp.uint32, words, row.ndim)
        return jnp.broadcast_to(row[..., None], words), word + jnp.uint32(first // WORD)

    return draw(dice_, words, counters)


def _short_rows(dice_: Dice, row, width: int, draw: Callable):
    """A word for each row of a flat mask (rows shorter than a word): bit s is column s."""
    bit = (row % WORD) * jnp.uint32(width)  # of the row's start, after its 32 rows' `width` words
    word = (row // WORD) * jnp.uint32(width) + bit // WORD

    def word_at(place):
        counters = jnp.zeros_like(place), place
        return draw(dice_, place.shape, lambda: counters)

    word, shift = word[..., None], (bit % WORD)[..., None]
    high = word_at(word + 1) << ((WORD - shift) % WORD)
    return (word_at(word) >> shift) | jnp.where(shift == 0, jnp.uint32(0), high)


def _draw(dice_: Dice, words: tuple[int, ...], counters: Callable) -> UInt32[Array, "..."]:
    """Combine the planes of the words at `counters()`."""
    # The barrier hides a constant T, so the loop stays a loop: the words are then materialised once
    # instead of being made again in each of the 32 elements that XLA would fuse them into.
    keep = lax.optimization_barrier(dice_.keep)
    lowest_bit = lax.population_count(~keep & (keep - 1)).astype(jnp.int32)
    first = jnp.where(keep >= ONE, PLANES, lowest_bit) // 4

    def four_planes(turn, mask):
        place = counters()  # inside the loop, or XLA would keep them in memory
        mask = _two_planes(dice_.seed, keep, place, 2 * turn.astype(jnp.uint32), mask)
        return _two_planes(dice_.seed, keep, place, 2 * turn.astype(jnp.uint32) + 1, mask)

    # "& 0" lends the start the key's type: under shard_map it may vary from device to device.
    start = jnp.broadcast_to(_spread(keep >> PLANES) | (dice_.seed[0] & 0), words)
    return lax.fori_loop(first, PLANES // 4, four_planes, start)


def _draw_unrolled(dice_: Dice, words: tuple[int, ...], counters: Callable):
    place, mask = counters(), jnp.zeros(words, jnp.uint32)
    for pair in range(PLANES // 2):
        mask = _two_planes(dice_.seed, dice_.keep, place, jnp.uint32(pair), mask)
    return mask | _spread(dice_.keep >> PLANES)


def _two_planes(seed, keep, place, pair, mask):
    """Combine the planes 2 pair and 2 pair + 1, which one evaluation gives."""
    row, word = place
    even, odd = threefry2x32(seed, (row, word * (PLANES // 2) + pair))
    mask = _combine(mask, even, keep >> (2 * pair))
    return _combine(mask, odd, keep >> (2 * pair + 1))


def unpack(words: UInt32[Array, "..."], shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """The bits of the words as a bool array of the mask's shape."""
    _, width = _rows(shape)
    if _is_flat(shape) and width <= 1 << 32:
        return _look_up(words, shape)
    return unpack_rows(words, width).reshape(shape)


def unpack_rows(words: UInt32[Array, "*rows words"], width: int) -> Bool[Array, "*rows width"]:
    """The first `width` bits of rows of words."""
    bit = lax.broadcasted_iota(jnp.uint32, (*words.shape, WORD), words.ndim)
    bits = (words[..., None] >> bit) & 1
    return bits.reshape(*words.shape[:-1], words.shape[-1] * WORD)[..., :width] != 0


def _look_up(words, shape):
    """The bits of a flat mask, element by element: its words are few and not cut up by sharding.

    (A reshape from words to elements would send words between devices.)
    """
    lead, last = shape[:-1], math.prod(shape[-1:])
    row, place = _counters((*lead, last))
    element = row * jnp.uint32(last) + place
    bits = words.at[element // WORD].get(mode="promise_in_bounds") >> (element % WORD)
    return (bits & 1).reshape(shape) != 0


def _rows(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The leading axes and the row length: short last axes are taken flat."""
    return ((), math.prod(shape)) if _is_flat(shape) else (shape[:-1], shape[-1])


def _is_flat(shape: tuple[int, ...]) -> bool:
    return not shape or shape[-1] < WORD


def _word_count(width: int) -> int:
    return -(-width // WORD)


def _counters(shape: tuple[int, ...]):
    """The global row and word index of every word, as iotas: they shard without communication."""
    *lead, _ = shape
    row, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(lead))):
        row = row + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= lead[axis]
    return row, lax.broadcasted_iota(jnp.uint32, shape, len(lead))


def _spread(bit):
    """All ones if the bit is 1, else all zeros."""
    return -(bit & 1)


def _combine(mask, plane, bit):
    """mask | plane where the bit is 1, mask & plane where it is 0: a majority vote of three."""
    return (mask & plane) | (_spread(bit) & (mask | plane))


def _seed(key, fold: int):
    """The two words K0 and K1 of the specification, for a fold of the key."""
    # Draws nothing; tells jax.debug_key_reuse that the key is used up, which fold_in does not.
    jax.random.bits(key, (0,), jnp.uint32)
    if jax.random.key_impl(key) == "threefry2x32":
        words = jax.random.key_data(fold_in(key, fold))
    else:
        words = _two_words(key, fold)
    return words[0], words[1]


def _two_words(key, fold: int):
    # JAX's own vmap of rbg keys draws other bits than a loop does; this loops.
    @jax.custom_batching.sequential_vmap
    def fold_and_draw(key):
        return jax.random.bits(jax.random.fold_in(key, fold), (2,), jnp.uint32)

    return fold_and_draw(key)


def noise_words(key, shape: tuple[int, ...]):
    """A word for each element, of the noise's specification (see `dropout_jax.random`)."""
    return threefry2x32(_seed(key, NOISE_FOLD), _counters(shape or (1,)))[0]
