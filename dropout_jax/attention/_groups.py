"""Groups of (batch, key head) pairs: choose their size, slice them and merge them.

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
    from jaxtyping import Array, Float, Int32, Shaped


class Plan(NamedTuple):
    """What is known when the program is traced. The parts are (together, in turn)."""

    scale: float
    static_mask: StaticMask
    batch_parts: tuple[int, int]
    head_parts: tuple[int, int]  # of the key heads


def choose_plan(inputs: Inputs, scale: float, static_mask: StaticMask) -> Plan:
    """Choose the groups: pairs of about 2048 queries together, or a part for every device."""
    batch, queries = inputs.query.shape[:2]
    key_heads = inputs.key.shape[2]
    mesh = jax.sharding.get_abstract_mesh()
    mesh_axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    devices = math.prod(size for size, kind in mesh_axes if kind != AxisType.Manual)
    group = min(8, max(1, 2048 // queries))
    batch_together = math.gcd(batch, devices if devices > 1 else group)
    heads_together = math.gcd(key_heads, devices if devices > 1 else group // batch_together)
    batch_parts = batch_together, batch // batch_together
    return Plan(scale, static_mask, batch_parts, (heads_together, key_heads // heads_together))


def scan_groups(plan: Plan, fn: Callable, carry: Any) -> Any:
    """Scan carry, result = fn(carry, index) over the groups, and stack the results."""
    count = plan.batch_parts[1] * plan.head_parts[1]
    return lax.scan(fn, carry, jnp.arange(count, dtype=jnp.int32))


def split_index(plan: Plan, index: Int32[Array, ""]) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """Split the index of a group into that along the batch and that along the heads."""
    return index // plan.head_parts[1], index % plan.head_parts[1]


def slice_group(plan: Plan, inputs: Inputs, index: Int32[Array, ""]) -> Inputs:
    """Slice the arrays of a group."""
    query, key, value = (slice_positions(plan, x, index) for x in inputs[:3])
    tiles = jax.tree.map(lambda x: _slice_split(plan, split_axes(plan, x), index), inputs[3:])
    return Inputs._make([query, key[:, :, 0], value[:, :, 0], *tiles])


def slice_positions(
    plan: Plan, x: Float[Array, "batch positions heads dim"], index: Int32[Array, ""]
) -> Float[Array, "group_batch group_key_heads group_heads positions dim"]:
    x = x.reshape(*plan.batch_parts, x.shape[1], *plan.head_parts, -1, x.shape[-1])
    batch_turn, head_turn = split_index(plan, index)
    x = lax.dynamic_index_in_dim(x, batch_turn, 1, keepdims=False)
    x = lax.dynamic_index_in_dim(x, head_turn, 3, keepdims=False)
    return x.transpose(0, 2, 3, 1, 4)


def merge_groups(
    plan: Plan, x: Float[Array, "groups group_batch group_key_heads group_heads positions dim"]
) -> Float[Array, "batch positions heads dim"]:
    turns = (plan.batch_parts[1], plan.head_parts[1])
    x = x.reshape(*turns, *x.shape[1:])  # turn, turn, batch, key head, head, position, dim
    x = x.transpose(2, 0, 5, 3, 1, 4, 6)
    return x.reshape(math.prod(x.shape[:2]), x.shape[2], math.prod(x.shape[3:6]), x.shape[6])


def split_axes(
    plan: Plan, x: Shaped[Array, "batch heads queries keys"]
) -> Shaped[Array, "batch_parts batch_turns head_parts head_turns group_heads queries keys"]:
    """Split the batch and head axes of a bias or a mask into parts; those of length 1 stay."""
    batch = (1, 1) if x.shape[0] == 1 else plan.batch_parts
    heads = (1, 1, 1) if x.shape[1] == 1 else (*plan.head_parts, -1)
    return x.reshape(*batch, *heads, *x.shape[2:])


def _slice_split(
    plan: Plan, x: Shaped[Array, "b bt k kt h queries keys"], index: Int32[Array, ""]
) -> Shaped[Array, "b k h queries keys"]:
    """Slice the part of a group from split x."""
    part = lax.dynamic_slice(x, _split_offsets(plan, x, index), _split_slice_shape(x))
    return part.reshape(x.shape[0], x.shape[2], *x.shape[4:])


def add_to_split(
    plan: Plan,
    x: Float[Array, "b bt k kt h queries keys"],
    part: Float[Array, "b k h queries keys"],
    index: Int32[Array, ""],
) -> Float[Array, "b bt k kt h queries keys"]:
    """Add the part of a group to split x."""
    return add_at(x, part.reshape(_split_slice_shape(x)), _split_offsets(plan, x, index))


def _split_slice_shape(x: Shaped[Array, "b bt k kt h queries keys"]) -> tuple[int, ...]:
    return (x.shape[0], 1, x.shape[2], 1, *x.shape[4:])


def _split_offsets(
    plan: Plan, x: Shaped[Array, "b bt k kt h queries keys"], index: Int32[Array, ""]
) -> tuple[Int32[Array, ""], ...]:
    batch_turn, head_turn = split_index(plan, index)
    zero = jnp.zeros_like(index)
    return (
        *(zero, zero if x.shape[1] == 1 else batch_turn),
        *(zero, zero if x.shape[3] == 1 else head_turn),
        *(zero, zero, zero),
    )


def add_at(
    total: Float[Array, "*shape"], part: Float[Array, "..."], offsets: tuple
) -> Float[Array, "*shape"]:
    current = lax.dynamic_slice(total, offsets, part.shape)
    return lax.dynamic_update_slice(total, current + part, offsets)
