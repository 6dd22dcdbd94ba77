"""Groups of (batch, key head) pairs and tiles of queries x keys: their sizes, and loops over them.

A few pairs form a group. On a mesh (jax.set_mesh) a group is strided over the batch and the heads,
so that each device has its part of every group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from dropout_jax.attention._inputs import Inputs, StaticMask

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped


class Plan(NamedTuple):
    """What is known when the program is traced. The parts are (together, in turn)."""

    scale: float
    static_mask: StaticMask
    batch_parts: tuple[int, int]
    head_parts: tuple[int, int]  # of the key heads
    queries: int
    keys: int


def choose_plan(inputs: Inputs, scale: float, static_mask: StaticMask) -> Plan:
    """Choose the groups: pairs of about 2048 queries together, or a part for every device."""
    batch, queries = inputs.query.shape[:2]
    keys, key_heads = inputs.key.shape[1:3]
    mesh = jax.sharding.get_abstract_mesh()
    mesh_axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    devices = math.prod(size for size, kind in mesh_axes if kind != AxisType.Manual)
    group = min(8, max(1, 2048 // queries))
    batch_together = math.gcd(batch, devices if devices > 1 else group)
    heads_together = math.gcd(key_heads, devices if devices > 1 else group // batch_together)
    return Plan(
        scale,
        static_mask,
        (batch_together, batch // batch_together),
        (heads_together, key_heads // heads_together),
        queries,
        keys,
    )


def map_groups(plan: Plan, fn: Callable, positions: Any, tiles: Any) -> Any:
    """Return the results of fn(batch turn, head turn, positions, tiles) of all groups, merged.

    `positions` are arrays (batch, positions, heads, dim), `tiles` (batch, heads, queries, keys)
    with axes of length 1 where they are shared. `fn` gets both as (batch, key heads, heads,
    positions, dim) of a group, and returns such arrays.
    """
    positions = jax.tree.map(lambda x: _split_positions(plan, x), positions)
    tiles = jax.tree.map(lambda x: _split_tiles(plan, x), tiles)

    def map_heads(_, batch_turn, parts):
        def call(_, head_turn, parts):
            return None, fn(batch_turn, head_turn, *parts)

        positions, tiles = parts  # (batch, positions, k, kt, g, dim), (batch, k, kt, g, q, keys)
        positions = jax.tree.map(lambda x: x.transpose(3, 0, 2, 4, 1, 5), positions)
        tiles = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), tiles)
        _, results = scan_parts(call, None, plan.head_parts[1], (positions, tiles))
        return None, jax.tree.map(lambda x: x.transpose(1, 4, 2, 0, 3, 5), results)

    _, results = scan_parts(map_heads, None, plan.batch_parts[1], (positions, tiles))
    return jax.tree.map(_merge_positions, results)


def _split_positions(
    plan: Plan, x: Float[Array, "batch positions heads dim"]
) -> Float[Array, "batch_turns group_batch positions group_key_heads head_turns group_heads dim"]:
    x = x.reshape(*plan.batch_parts, x.shape[1], *plan.head_parts, -1, x.shape[3])
    return jnp.moveaxis(x, 1, 0)


def _merge_positions(
    x: Float[Array, "batch_turns group_batch positions group_key_heads head_turns group_heads dim"],
) -> Float[Array, "batch positions heads dim"]:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(math.prod(x.shape[:2]), x.shape[2], math.prod(x.shape[3:6]), x.shape[6])


def _split_tiles(
    plan: Plan, x: Shaped[Array, "batch heads queries keys"]
) -> Shaped[
    Array, "#batch_turns #group_batch #group_key_heads #head_turns #group_heads queries keys"
]:
    """Split the batch and head axes of a bias or a mask; those of length 1 stay."""
    batch = (1, 1) if x.shape[0] == 1 else plan.batch_parts
    heads = (1, 1, 1) if x.shape[1] == 1 else (*plan.head_parts, -1)
    return jnp.moveaxis(x.reshape(*batch, *heads, *x.shape[2:]), 1, 0)


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


def scan_parts(fn: Callable, carry: Any, count: int, arrays: Any) -> Any:
    """Scan carry, result = fn(carry, turn, parts) over the first axis of arrays.

    An array of length 1 there is shared by all turns: its gradient is summed, not stacked.
    """
    leaves, structure = jax.tree.flatten(arrays)
    swept = [None if x.shape[0] == 1 else x for x in leaves]

    def call(carry, turn_and_parts):
        turn, parts = turn_and_parts
        pairs = zip(leaves, parts, strict=True)
        parts = [leaf[0] if part is None else part for leaf, part in pairs]
        return fn(carry, turn, structure.unflatten(parts))

    return lax.scan(call, carry, (jnp.arange(count, dtype=jnp.int32), swept))
