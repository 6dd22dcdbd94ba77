"""Meshes, and where the arrays of a run lie on them: data parallel, FSDP and tensor parallel.

A mesh has three axes. Rows of the batch are spread over "data" and "fsdp"; matrices over "fsdp" and
"tensor"; what is small is on every device. XLA adds the communication; the step's code is the same
from one device to many, and no mask needs any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from minigpt.config import Config
from minigpt.data import Batch

AXES = ("data", "fsdp", "tensor")

# By the end of an array's name: the axes of its last two dimensions. Columns first, then rows, so
# that a pair of matrices needs one exchange; Adam's moments end in the same names.
_MATRICES = {
    ("attn", "qkv", "kernel"): ("fsdp", "tensor"),
    ("attn", "out", "kernel"): ("tensor", "fsdp"),
    ("mlp", "wide", "kernel"): ("fsdp", "tensor"),
    ("mlp", "out", "kernel"): ("tensor", "fsdp"),
    ("tokens", "embedding"): (None, "fsdp"),
    ("positions", "embedding"): (None, "fsdp"),
}


def make_mesh(config: Config) -> Mesh:
    """The mesh that config.mesh describes; None takes as many devices for "data" as divide."""
    count, part = jax.device_count(), config.batch_size // config.accumulate
    sizes = parse_mesh_spec(config.mesh) if config.mesh else {"data": math.gcd(part, count)}
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    _check(config, dict(zip(AXES, shape, strict=True)), count)
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def parse_mesh_spec(text: str) -> dict[str, int]:
    """`data=4,fsdp=2` as a dictionary."""
    pairs = [part.partition("=") for part in text.split(",")]
    names = [name for name, _, _ in pairs]
    right = all(name in AXES and size.isdecimal() and int(size) for name, _, size in pairs)
    if not right or len(set(names)) < len(names):
        raise ValueError(
            f"mesh={text!r} is not allowed: it must name sizes of at least 1 for some of "
            f"{', '.join(AXES)}, such as data=4,fsdp=2,tensor=1."
        )
    return {name: int(size) for name, _, size in pairs}


def _check(config: Config, sizes: dict[str, int], count: int) -> None:
    model, rows = config.model, sizes["data"] * sizes["fsdp"] * config.accumulate
    needed = math.prod(sizes.values())
    fits = needed == count if jax.process_count() > 1 else needed <= count
    for holds, name, value, allowed in (
        (fits, "mesh", config.mesh, f"of the {count} devices there are, not {needed}"),
        (config.batch_size % rows == 0, "batch_size", config.batch_size, f"a multiple of {rows}"),
        (
            model.n_embd % sizes["fsdp"] == 0,
            "model.n_embd",
            model.n_embd,
            f"a multiple of fsdp={sizes['fsdp']}",
        ),
        (
            model.n_head % sizes["tensor"] == 0,
            "model.n_head",
            model.n_head,
            f"a multiple of tensor={sizes['tensor']}",
        ),
    ):
        if not holds:
            raise ValueError(
                f"{name}={value!r} is not allowed: on this mesh it must be {allowed}. Change it or "
                "--mesh."
            )


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """Where each array of a state lies, by its name."""

    def sharding(path, leaf):
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        names = names[:-1] if names and names[-1] == "value" else names
        for end, axes in _MATRICES.items():
            if names[-len(end) :] == end:
                layers = (None,) * (leaf.ndim - 2)  # of a model that scans over its layers
                return NamedSharding(mesh, P(*layers, *axes))
        return NamedSharding(mesh, P())

    return jax.tree.map_with_path(sharding, tree)


def shard_state(mesh: Mesh, tree: Any) -> Any:
    """Arrays that every process has, each laid out on the mesh by its name."""

    def lay_out(leaf, sharding):
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(lay_out, tree, state_shardings(mesh, tree))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds."""
    return NamedSharding(mesh, P())


def shard_batch(mesh: Mesh, shape: tuple[int, int], rows: Callable[[slice], Batch]) -> Batch:
    """A batch on the mesh; `rows(part)` is asked for the rows of this process's devices only."""
    sharding = NamedSharding(mesh, P(("data", "fsdp")))
    parts: dict[tuple[int, int], Batch] = {}

    def part(index: Any, field: int) -> np.ndarray:
        start, stop, _ = index[0].indices(shape[0])
        if (start, stop) not in parts:
            parts[start, stop] = rows(slice(start, stop))
        return parts[start, stop][field]

    arrays: Any = (
        jax.make_array_from_callback(shape, sharding, lambda index, field=field: part(index, field))
        for field in range(len(Batch._fields))
    )
    return Batch(*arrays)


def constrain_batch_sharding(x: jax.Array, axis: int = 0) -> jax.Array:
    """Keep an activation cut by rows of the batch, whatever the matrices it meets are cut by."""
    mesh = jax.sharding.get_abstract_mesh()
    if "fsdp" not in mesh.axis_names or x.shape[axis] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, P(*(None,) * axis, ("data", "fsdp")))


def use_mesh(mesh: Mesh) -> AbstractContextManager[Any]:
    """The mesh in effect, so that attention is laid out on it; nothing for one device."""
    return jax.set_mesh(mesh) if mesh.size > 1 else nullcontext()
