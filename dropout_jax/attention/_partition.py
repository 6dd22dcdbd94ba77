"""Attention on a mesh: every device works on its part of the batch and the heads, by itself.

The compiler cannot cut up a kernel, and would gather its operands. Where the mesh has Explicit axes
the type of the query says how it is sharded, and jax.shard_map cuts the kernel up. Where it has
Auto axes, only the compiler knows: on CPU and GPU custom_partitioning asks it. JAX has no
custom_partitioning on TPU; there the axes' names decide, and arrays sharded otherwise are moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dropout_jax.attention._kernel_inputs import Operands

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Axes = str | tuple[str, ...] | None  # of the mesh, along which an axis is sharded

BATCH_NAMES = "data", "fsdp", "batch", "dp", "replica"
HEAD_NAMES = "tensor", "model", "tp", "heads"


class PairAxes(NamedTuple):
    """The axes of the mesh along which the batch and the heads are sharded."""

    batch: Axes
    heads: Axes


def find_explicit_axes(query: Float[Array, "batch queries heads dim"]) -> PairAxes | None:
    """Return what the type of the query says; None without a mesh of Explicit axes."""
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return None
    batch, _, heads, _ = (*jax.typeof(query).sharding.spec, *[None] * 4)[:4]
    return PairAxes(batch, heads)


def partition_by_type(run: Callable, name: str, axes: PairAxes, arrays: tuple) -> Any:
    """Return run(*arrays), computed by each device for its part; `name` is that of the pass."""
    mesh = jax.sharding.get_abstract_mesh()
    batch = axes.batch
    heads = _choose_head_axes(mesh, axes.heads, arrays[0].inputs.key.shape[2])
    in_specs, out_specs = _build_specs(name, arrays, batch, heads)
    return jax.shard_map(
        _sum_bias_gradient(run, name, arrays, batch, heads),
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names={*_list_axes(batch), *_list_axes(heads)},
        check_vma=False,
    )(*arrays)


def partition_by_names(run: Callable, name: str, arrays: tuple) -> Any:
    """Do it along the axes of the mesh in context that have the usual names, if they fit."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return run(*arrays)
    size = arrays[0].inputs.query.shape[0]
    batch = tuple(axis for axis in mesh.axis_names if axis in BATCH_NAMES)
    heads = tuple(axis for axis in mesh.axis_names if axis in HEAD_NAMES)
    if size % math.prod(mesh.shape[axis] for axis in batch):
        batch = ()
    if not batch + heads:
        return run(*arrays)
    return partition_by_type(run, name, PairAxes(batch, heads), arrays)


def partition_by_compiler(run: Callable, name: str, arrays: tuple) -> Any:
    """Do it as the compiler shards the batch and the heads."""
    if AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types:
        return run(*arrays)

    @custom_partitioning
    def partitioned(*arrays):
        return run(*arrays)

    def partition(mesh, arg_shapes, result_shape):
        batch, _, heads, _ = arg_shapes[0].inputs.query.sharding.spec
        heads = _choose_head_axes(mesh, heads, arg_shapes[0].inputs.key.shape[2])
        specs = _build_specs(name, arg_shapes, batch, heads)
        arg_shardings, result_shardings = jax.tree.map(
            lambda spec: NamedSharding(mesh, spec), specs
        )
        return (
            mesh,
            _sum_bias_gradient(run, name, arrays, batch, heads),
            result_shardings,
            arg_shardings,
        )

    def rule(mesh, value_types, result_types):
        return _build_sharding_rule(name, arrays, mesh)

    partitioned.def_partition(partition, sharding_rule=rule)

    @jax.custom_batching.custom_vmap
    def call(*arrays):
        return partitioned(*arrays)

    @call.def_vmap  # custom_partitioning has no rule of its own
    def _(_, is_batched, *arrays):
        in_axes = jax.tree.map(lambda x: 0 if x else None, is_batched)
        results = jax.vmap(run, in_axes)(*arrays)
        return results, jax.tree.map(lambda _: True, results)

    return call(*arrays)


def _choose_head_axes(mesh: Any, axes: Axes, key_heads: int) -> Axes:
    """Return the axes of the mesh that shard the heads, if they cut no group of heads."""
    count = math.prod(mesh.shape[name] for name in _list_axes(axes))
    return axes if key_heads % count == 0 else None


def _list_axes(axes: Axes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def _build_specs(name: str, arrays: tuple, batch: Axes, heads: Axes) -> tuple[Any, Any]:
    """Build the specs of the arguments and of the results."""

    def of_tile(x):
        shared = [
            None if size == 1 else axes for size, axes in zip(x.shape, (batch, heads), strict=False)
        ]
        return PartitionSpec(*shared, None, None)

    positions, rows = PartitionSpec(batch, None, heads, None), PartitionSpec(batch, heads, None)
    inputs = arrays[0].inputs
    tiles = jax.tree.map(of_tile, inputs[3:])
    in_specs = Operands._make(
        [
            inputs._make([positions, positions, positions, *tiles]),
            PartitionSpec(batch, heads),
            PartitionSpec(None),
            PartitionSpec(None),
        ]
    )
    if name == "forward":
        return (in_specs,), (positions, rows)
    return (in_specs, positions, rows, positions), (*[positions] * 3, tiles[0])


def _sum_bias_gradient(
    run: Callable, name: str, arrays: tuple, batch: Axes, heads: Axes
) -> Callable:
    """Sum the gradient of a bias over the devices whose rows of the batch, or heads, share it."""
    bias = arrays[0].inputs.bias
    if name == "forward" or bias is None:
        return run
    axes: list[str] = []
    for size, names in zip(bias.shape, (batch, heads), strict=False):
        axes += _list_axes(names) if size == 1 else ()

    def run_and_sum(*arrays: Any) -> tuple[Array, ...]:
        *others, d_bias = run(*arrays)
        return *others, lax.psum(d_bias, axes) if axes else d_bias

    return run_and_sum


def _build_sharding_rule(name: str, arrays: tuple, mesh: Any) -> tuple[str, dict[str, Any]]:
    """Build the rule of Shardy: which axes of the operands and the results are one."""
    inputs = arrays[0].inputs
    key_heads = inputs.key.shape[2]
    group = inputs.query.shape[2] // key_heads
    head, key_head, sizes = ("g", "g", {}) if group == 1 else ("(g r)", "g", {"r": group})
    # Shardy would cut an axis of the mesh in two, which no PartitionSpec can say.
    if group > 1 and any(
        key_heads % size for axis, size in mesh.shape.items() if axis not in BATCH_NAMES
    ):
        head, key_head, sizes = "h", "g", {}
    positions, of_keys, rows = f"b t {head} d", f"b s {key_head} d", f"b {head} t"
    options = {"need_replication_factors": ("t", "d", "s")} | sizes
    count = 0

    def of_tile(x):
        nonlocal count
        names = []
        for size, factor in zip(x.shape, ("b", head, "t", "s"), strict=True):
            count += size == 1
            names.append(f"o{count}" if size == 1 else factor)
        return " ".join(names)

    tiles = jax.tree.map(of_tile, inputs[3:])
    operands = [positions, of_keys, of_keys, *jax.tree.leaves(tiles), f"b {head}", "w", "k"]
    if name == "forward":
        results = [positions, rows]
    else:
        operands += [positions, rows, positions]
        results = [positions, of_keys, of_keys, *jax.tree.leaves(tiles[0])]
    return f"{', '.join(operands)} -> {', '.join(results)}", options
