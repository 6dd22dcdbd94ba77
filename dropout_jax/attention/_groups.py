"""Groups of (batch, key head) pairs and tiles of queries x keys: their sizes, and loops over them.

A few pairs form a group: neighbours, so that a loop over groups copies little. On a mesh
(jax.set_mesh) a group is strided over the batch and the heads, so that each device has its part of
every group.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from dropout_jax.attention._inputs import Inputs, StaticMask, is_symbolic

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped, UInt32


MAX_ROWS = 256  # of a tile
MAX_TILE = 2**26  # weights that an accelerator computes together


class Parts(NamedTuple):
    """How the elements of an axis are grouped: `together` of them in each of `turns` turns.

    A group is of neighbours, or of every `turns`-th element where it is strided.
    """

    together: int
    turns: int
    is_strided: bool

    def split(self, x: Shaped[Array, "..."], axis: int) -> Shaped[Array, "..."]:
        """Split an axis into (turns, together); one of length 1 into (1, 1)."""
        lead, size, rest = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
        if size == 1:
            return x.reshape(*lead, 1, 1, *rest)
        if not self.is_strided:
            return x.reshape(*lead, self.turns, self.together, *rest)
        return x.reshape(*lead, self.together, self.turns, *rest).swapaxes(axis, axis + 1)

    def merge(self, x: Shaped[Array, "..."], axis: int) -> Shaped[Array, "..."]:
        """Merge the axes (turns, together) at `axis`."""
        x = x.swapaxes(axis, axis + 1) if self.is_strided else x
        return x.reshape(*x.shape[:axis], self.turns * self.together, *x.shape[axis + 2 :])

    def locate(self, turn: UInt32[Array, ""], element: UInt32[Array, "*shape"]) -> Any:
        """Return the indices along the axis of the elements of a turn."""
        if self.is_strided:
            return element * jnp.asarray(self.turns, jnp.uint32) + turn
        return element + turn * jnp.asarray(self.together, jnp.uint32)


class Plan(NamedTuple):
    """What is known when the program is traced."""

    scale: float
    static_mask: StaticMask
    batch: Parts
    key_heads: Parts
    queries: int
    keys: int
    broadcast_dims: tuple[int, ...] = ()  # of the mask


def choose_plan(inputs: Inputs, scale: float, static_mask: StaticMask) -> Plan:
    """Choose the groups: of every device's pairs, as many as are fast together."""
    batch, queries = inputs.query.shape[:2]
    keys, key_heads = inputs.key.shape[1:3]
    devices = _count_devices()
    most = _count_pairs_together(queries, keys)
    batch_parts = _choose_parts(batch, most, devices)
    head_parts = _choose_parts(key_heads, max(1, most // batch_parts.together), devices)
    return Plan(scale, static_mask, batch_parts, head_parts, queries, keys)


def _count_pairs_together(queries: int, keys: int) -> int:
    """Return how many pairs of a device are fast together, a power of two.

    A CPU wants what its caches hold, an accelerator much work at once. Results do not depend on it.
    """
    if is_symbolic(queries, keys):
        return 1
    if jax.default_backend() == "cpu":
        return 8 if queries <= 512 and _count_devices() == 1 else 1
    return 1 << max(0, (MAX_TILE // (MAX_ROWS * keys)).bit_length() - 1)


def _count_devices() -> int:
    """Count the devices of the mesh in context over which the compiler spreads the work."""
    mesh = jax.sharding.get_abstract_mesh()
    mesh_axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.prod(size for size, kind in mesh_axes if kind != AxisType.Manual)


def _choose_parts(size: int, most: int, devices: int) -> Parts:
    if is_symbolic(size):
        return Parts(1, size, False)
    together = math.gcd(size, devices * most)
    return Parts(together, size // together, devices > 1)


def map_groups(plan: Plan, fn: Callable, positions: Any, tiles: Any) -> Any:
    """Return the results of fn(turns, positions, tiles) of all groups, merged.

    `positions` are arrays (batch, positions, heads, dim), `tiles` (batch, heads, queries, keys)
    with axes of length 1 where they are shared. `fn` gets the turns along the batch and the heads,
    and both as (batch, key heads, heads, positions, dim) of a group, and returns such arrays.
    """

    def call_in_heads(batch_turn, parts):
        def call(head_turn, parts):
            return fn((batch_turn, head_turn), *parts)

        positions, tiles = parts
        positions = jax.tree.map(
            lambda x: _split_heads(plan, x, 2).transpose(2, 0, 3, 4, 1, 5), positions
        )
        tiles = jax.tree.map(lambda x: jnp.moveaxis(_split_heads(plan, x, 1), 1, 0), tiles)
        results = map_parts(call, plan.key_heads.turns, (positions, tiles))
        return jax.tree.map(lambda x: _merge_heads(plan, x.transpose(1, 4, 0, 2, 3, 5)), results)

    arrays = jax.tree.map(lambda x: plan.batch.split(x, 0), (positions, tiles))
    results = map_parts(call_in_heads, plan.batch.turns, arrays)
    return jax.tree.map(lambda x: plan.batch.merge(x, 0), results)


def _split_heads(plan: Plan, x: Shaped[Array, "..."], axis: int) -> Shaped[Array, "..."]:
    """Split the axis of heads into (head turns, key heads, heads); one of length 1 into 1s."""
    shape = (1, 1) if x.shape[axis] == 1 else (plan.key_heads.together * plan.key_heads.turns, -1)
    x = x.reshape(*x.shape[:axis], *shape, *x.shape[axis + 1 :])
    return plan.key_heads.split(x, axis)


def _merge_heads(
    plan: Plan, x: Float[Array, "batch positions head_turns key_heads heads dim"]
) -> Float[Array, "batch positions all_heads dim"]:
    x = plan.key_heads.merge(x, 2)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], x.shape[4])


def split_axis(arrays: Any, axis: int, part: int) -> Any:
    """Split an axis of arrays into parts, along a new first axis.

    An array of length 1 on that axis is shared by all parts.
    """

    def split(x):
        if x.shape[axis] == 1:
            return x[None]
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, part, *x.shape[axis + 1 :]), axis, 0)

    return jax.tree.map(split, arrays)


def pad_axis(x: Shaped[Array, "..."], axis: int, more: int) -> Shaped[Array, "..."]:
    """Add `more` zeros at the end of an axis."""
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)]) if more else x


def map_parts(fn: Callable, count: int, arrays: Any) -> Any:
    """Stack the results of fn(turn, parts) over the first axis of arrays, in a loop.

    The backward pass computes again what fn computes, and keeps its arguments alone. An array of
    length 1 on the first axis is shared by all turns: its gradient is summed, not stacked.
    """
    leaves, structure = jax.tree.flatten(arrays)
    # XLA copies whole arrays around a loop to change the order of axes of length 1, so the loop
    # sees no such axes; on a mesh it would gather arrays that are flattened.
    flatten = _flatten if _count_devices() == 1 else lambda x: x
    swept = [None if x.shape[0] == 1 else jax.vmap(flatten)(x) for x in leaves]
    shapes = []

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def call(_, turn_and_parts):
        turn, parts = turn_and_parts
        pairs = zip(leaves, parts, strict=True)
        parts = [leaf[0] if part is None else part.reshape(leaf.shape[1:]) for leaf, part in pairs]
        results, result_structure = jax.tree.flatten(fn(turn, structure.unflatten(parts)))
        shapes[:] = [result_structure, *(x.shape for x in results)]
        return None, [flatten(x) for x in results]

    _, results = lax.scan(call, None, (jnp.arange(count, dtype=jnp.int32), swept))
    pairs = zip(results, shapes[1:], strict=True)
    return shapes[0].unflatten([x.reshape(count, *shape) for x, shape in pairs])


def _flatten(x: Shaped[Array, "..."]) -> Shaped[Array, " size"]:
    return x.reshape(-1)
