"""The inputs that every implementation of attention gets, and which keys a query sees."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Int32, UInt32


class StaticMask(NamedTuple):
    """The part of the mask that is known when tracing; a window of None is unlimited."""

    is_causal: bool
    window: tuple[int, int] | None  # keys to the left and to the right

    def key_range(self, first_row: int, last_row: int, keys: int) -> tuple[int, int]:
        """Return the range of keys, within 0 to `keys`, that first_row to last_row may see."""
        left, right = self.window or (last_row, keys)
        if self.is_causal:
            right = min(right, 0)
        high = min(keys, last_row + right + 1)
        return min(high, max(0, first_row - left)), high


class MaskArrays(NamedTuple):
    """The arrays that hide keys; each broadcasts to (batch, heads, queries, keys)."""

    mask: Bool[Array, "#batch #heads #queries #keys"] | None  # True is visible
    query_lengths: Int[Array, "batch 1 1 1"] | None
    key_lengths: Int[Array, "batch 1 1 1"] | None


def is_symbolic(*sizes: Any) -> bool:
    """Whether any size is symbolic, as in programs of jax.export for more than one shape."""
    return any(jax.export.is_symbolic_dim(size) for size in sizes)


class Inputs(NamedTuple):
    """The arrays of attention; the bias is optional."""

    query: Float[Array, "batch queries heads dim"]
    key: Float[Array, "batch keys key_heads dim"]
    value: Float[Array, "batch keys key_heads dim"]
    bias: Float[Array, "#batch #heads #queries #keys"] | None
    mask_arrays: MaskArrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropout:
    """The dropout of the weights. (Its fields are untyped, as JAX makes pytrees of other things.)

    Args:
      key: of the mask, one PRNG key.
      rate: the probability of dropping, a float32 scalar.
      row_offset: the index of the first row in a larger batch, a uint32 scalar, or None.
      broadcast_dims: 0 if all rows of the batch have one mask, 1 if all heads have, or both.
    """

    key: Any
    rate: Any
    row_offset: Any
    broadcast_dims: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def compute_head_index(
    row: UInt32[Array, "*shape"],
    head: UInt32[Array, "*shape"],
    heads: int,
    broadcast_dims: tuple[int, ...],
) -> UInt32[Array, "*shape"]:
    """Compute the index of each (row, head) over those that have masks of their own."""
    if 0 in broadcast_dims:
        row = jnp.zeros_like(row)
    return row if 1 in broadcast_dims else row * jnp.asarray(heads, jnp.uint32) + head


def vary_alike(arrays: Any) -> Any:
    """Under jax.shard_map, make all arrays vary over the devices as any of them does.

    Loops then carry one type, and the gradient of a replicated array is summed once, at the end.
    """
    if AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types:
        return arrays
    never = functools.reduce(
        jnp.logical_or, (lax.full_like(x, False, bool, ()) for x in jax.tree.leaves(arrays))
    )
    return jax.tree.map(lambda x: jnp.where(never, jnp.zeros_like(x), x), arrays)


def compute_visibility(
    static_mask: StaticMask,
    mask_arrays: MaskArrays,
    rows: Int32[Array, " rows"],
    keys: Int32[Array, " keys"],
    ndim: int,
) -> Bool[Array, "..."] | None:
    """Compute which keys each row sees, as an array of `ndim` axes; the last are (rows, keys).

    None means all of them. `rows` and `keys` are positions, and the mask in `mask_arrays` is
    already sliced to them. The arrays in `mask_arrays` have `ndim` axes.
    """
    row = jnp.expand_dims(rows, (*range(ndim - 2), ndim - 1))
    key = jnp.expand_dims(keys, tuple(range(ndim - 1)))
    parts: list[jax.Array] = []
    if static_mask.is_causal:
        parts.append(key <= row)
    if static_mask.window is not None:
        left, right = static_mask.window
        parts += [key + left >= row, key <= row + right]
    if mask_arrays.query_lengths is not None:
        parts.append(row < mask_arrays.query_lengths)
    if mask_arrays.key_lengths is not None:
        parts.append(key < mask_arrays.key_lengths)
    if mask_arrays.mask is not None:
        parts.append(mask_arrays.mask)
    visibility = None
    for part in parts:
        visibility = part if visibility is None else visibility & part
    return visibility
