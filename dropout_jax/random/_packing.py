"""Where the words of a mask are, and which bit of them belongs to an element: steps 3 and 4."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.export
import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, UInt32

WORD = 32  # elements per word
BYTE_DTYPE = jnp.bfloat16  # holds 0 to 255 exactly
MAX_PRODUCT = 2**13  # places along the packed axis up to which a product is cheap on a TPU


def packed_axis(shape: tuple[int, ...]) -> int | None:
    """Return the packed axis of a mask of a shape, None for a flat one."""
    return next((axis for axis in candidate_axes(shape) if shape[axis] >= WORD), None)


def candidate_axes(shape: tuple[int, ...]) -> list[int]:
    """Return the axes that may be packed, in order: not axis 0, whose parts are drawn alone."""
    return ([len(shape) - 2] if len(shape) > 2 else []) + ([len(shape) - 1] if shape else [])


def words_shape(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """Return the shape of the array of words of a mask whose packed axis is `axis`."""
    if axis is None:
        return (word_count(math.prod(shape)),)
    return (*shape[:axis], word_count(shape[axis]), *shape[axis + 1 :])


def word_count(size: int) -> int:
    return -(-size // WORD)


def word_counters(
    shape: tuple[int, ...],
) -> tuple[UInt32[Array, "*words"], UInt32[Array, "*words"]]:
    """Compute the row and the column of every word, as iotas without communication."""
    *lead, _ = shape
    row, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(lead))):
        row = row + lax.broadcasted_iota(jnp.uint32, shape, axis) * as_uint32(stride)
        stride *= lead[axis]
    return row, lax.broadcasted_iota(jnp.uint32, shape, len(lead))


def locate_element(
    row: UInt32[Array, "*shape"], size: int
) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """Return the word and the bit of element row * size, a number that may exceed 32 bits."""
    high, low = row // WORD, row % WORD
    bit = low * as_uint32(size % WORD)
    word = high * as_uint32(size) + low * as_uint32(size // WORD) + bit // WORD
    return word, bit % WORD


def as_uint32(size: int) -> UInt32[Array, ""]:
    """Convert a size, also a symbolic one, modulo 2^32."""
    if jax.export.is_symbolic_dim(size):
        return jnp.asarray(size).astype(jnp.uint32)
    return jnp.uint32(size % 2**32)


def unpack_mask(
    words: UInt32[Array, "..."] | Bool[Array, "..."], shape: tuple[int, ...]
) -> Bool[Array, "..."]:
    """Unpack words into a bool array of the shape of the mask."""
    if words.dtype == bool:  # of a symbolic shape, see `draw_packed_mask`
        return words
    return unpack_along_packed_axis(words, shape, packed_axis(shape))


def unpack_along_packed_axis(
    words: UInt32[Array, "..."], shape: tuple[int, ...], axis: int | None
) -> Bool[Array, "..."]:
    """Unpack words whose packed axis is known; None is that of a flat mask."""
    if axis is None:
        return _look_up_bits(words, shape)
    return unpack_along(words, axis, shape[axis])


def unpack_tile(
    words: UInt32[Array, "*lead _ _"],
    sizes: tuple[int, int],
    rows: int,
    columns: int,
    *,
    in_kernel: bool = False,
    is_transposed: bool = False,
) -> Bool[Array, "*lead _ _"]:
    """Unpack a tile of `rows` and `columns` of a mask whose last two axes have `sizes`."""
    axis = packed_axis((1, *sizes))
    if axis is None:
        return (words & 1) != 0
    size, axis = rows if axis == 1 else columns, 3 - axis if is_transposed else axis
    unpack = _unpack_by_shifts if in_kernel else unpack_along
    return unpack(words, words.ndim - 3 + axis, size)


def unpack_along(words: UInt32[Array, "..."], axis: int, size: int) -> Bool[Array, "..."]:
    """Unpack the first `size` bits along an axis."""
    if jax.export.is_symbolic_dim(size):
        return _look_up_along(words, axis, size)
    is_one_device = math.prod(jax.sharding.get_abstract_mesh().axis_sizes) == 1
    if size > MAX_PRODUCT or words.ndim - axis > 2 or not is_one_device:
        return _unpack_by_shifts(words, axis, size)
    by_product, by_shifts = (
        functools.partial(unpack, axis=axis, size=size)
        for unpack in (_unpack_by_product, _unpack_by_shifts)
    )
    return lax.platform_dependent(words, tpu=by_product, default=by_shifts)


def _unpack_by_shifts(words: UInt32[Array, "..."], axis: int, size: int) -> Bool[Array, "..."]:
    one_bit = [1] * (words.ndim + 1)
    one_bit[axis + 1] = WORD
    bit = lax.broadcasted_iota(jnp.uint32, tuple(one_bit), axis + 1)
    bits = (jnp.expand_dims(words, axis + 1) >> bit) & 1
    bits = bits.reshape(*words.shape[:axis], words.shape[axis] * WORD, *words.shape[axis + 1 :])
    if bits.shape[axis] > size:  # Triton knows no slices
        bits = lax.slice_in_dim(bits, 0, size, axis=axis)
    return bits != 0


def _unpack_by_product(words: UInt32[Array, "..."], axis: int, size: int) -> Bool[Array, "..."]:
    """Unpack along one of the last two axes by a product that repeats the bytes of the words.

    A TPU's vector units would move every word to 32 lanes or sublanes through memory. Its matrix
    unit brings each element its byte, a number that bfloat16 holds exactly, times 1.
    """
    count = words.shape[axis]
    parts = [((words >> (8 * n)) & 0xFF).astype(jnp.int32).astype(BYTE_DTYPE) for n in range(4)]
    part, element = (lax.broadcasted_iota(jnp.int32, (4 * count, size), n) for n in (0, 1))
    selects = (part == element % WORD // 8 * count + element // WORD).astype(BYTE_DTYPE)
    subscripts = "...p,ps->...s" if axis == words.ndim - 1 else "...pc,ps->...sc"
    parts = jnp.concatenate(parts, axis=axis)
    of_element = jnp.einsum(subscripts, parts, selects, preferred_element_type=jnp.float32)
    bit = lax.broadcasted_iota(jnp.int32, of_element.shape, axis) % 8
    return ((of_element.astype(jnp.int32) >> bit) & 1) != 0


def _look_up_along(words: UInt32[Array, "..."], axis: int, size: Any) -> Bool[Array, "..."]:
    """Unpack along an axis of symbolic size, which cannot be sliced to it."""
    index = jnp.arange(size, dtype=jnp.uint32)
    shift = jnp.expand_dims(index % WORD, [n for n in range(words.ndim) if n != axis])
    return ((jnp.take(words, index // WORD, axis, mode="clip") >> shift) & 1) != 0


def _look_up_bits(words: UInt32[Array, " words"], shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Look up the bit of each element of a flat mask.

    (A reshape from words to elements would send words between devices. A flat mask has few words,
    and they are not sharded.)
    """
    lead, last = shape[:-1], math.prod(shape[-1:])
    row, column = word_counters((*lead, last))
    word, bit = locate_element(row, last)
    bit = bit + column
    bits = words.at[word + bit // WORD].get(mode="promise_in_bounds") >> (bit % WORD)
    return (bits & 1).reshape(shape) != 0
