"""The device mesh of a run, and how its arrays are sharded: data parallel, FSDP, tensor parallel.

A mesh has three axes. The rows of a batch are sharded over "data" and "fsdp", matrices over "fsdp"
and "tensor"; small arrays are replicated. XLA adds the communication, so the code of a step is the
same for one device and for many. Dropout masks need no communication.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from minigpt.config import Config
from minigpt.data import AnswerBatch, Batch

AXES = ("data", "fsdp", "tensor")
AnyBatch = TypeVar("AnyBatch", Batch, AnswerBatch)

# The mesh axes of a matrix's last two dimensions, by the end of its name. The first matrix of a
# pair is sharded by columns over "tensor" and the second by rows, so that the pair needs one
# exchange. Adam's moments have the same names as the parameters.
_MATRIX_AXES = {
    ("attn", "qkv", "kernel"): ("fsdp", "tensor"),
    ("attn", "out", "kernel"): ("tensor", "fsdp"),
    ("mlp", "wide", "kernel"): ("fsdp", "tensor"),
    ("mlp", "gate", "kernel"): ("fsdp", "tensor"),
    ("mlp", "out", "kernel"): ("tensor", "fsdp"),
    ("tokens", "embedding"): (None, "fsdp"),
    ("positions", "embedding"): (None, "fsdp"),
    ("head", "kernel"): ("fsdp", None),
}


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """Build the mesh of config.mesh; None puts as many devices on "data" as divide the batch.

    `devices` replace those of this process; they need not be there (see topology.py).
    """
    devices = jax.devices() if devices is None else devices
    rows = config.batch_size // config.accumulate
    sizes = parse_mesh_spec(config.mesh) if config.mesh else {"data": math.gcd(rows, len(devices))}
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    _check_mesh(config, dict(zip(AXES, shape, strict=True)), len(devices))
    used = devices[: math.prod(shape)]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=used)


def fit_mesh(config: Config, warn: Callable[[str], object], consequence: str) -> Config:
    """The settings on the run's mesh, or on one device if it does not fit the devices here."""
    try:
        make_mesh(config)
    except ValueError as error:
        warn(f"{error} {consequence}")
        return dataclasses.replace(config, mesh="data=1")
    return config


def parse_mesh_spec(text: str) -> dict[str, int]:
    """Parse `data=4,fsdp=2`: the number of devices by axis."""
    pairs = [part.partition("=") for part in text.split(",")]
    names = [name for name, _, _ in pairs]
    is_valid = all(name in AXES and size.isdecimal() and int(size) for name, _, size in pairs)
    if not is_valid or len(set(names)) < len(names):
        raise ValueError(
            f"mesh={text!r} is not allowed: it must give sizes of at least 1 for some of "
            f"{', '.join(AXES)}, such as data=4,fsdp=2,tensor=1."
        )
    return {name: int(size) for name, _, size in pairs}


def _check_mesh(config: Config, sizes: dict[str, int], device_count: int) -> None:
    model, rows = config.model, sizes["data"] * sizes["fsdp"] * config.accumulate
    used = math.prod(sizes.values())
    is_multi_process = jax.process_count() > 1
    fits = used == device_count if is_multi_process else used <= device_count
    limit = "exactly" if is_multi_process else "at most"
    mesh_rule = f"of {limit} the {device_count} devices that are available, not {used}"
    for is_valid, name, value, allowed in (
        (fits, "mesh", config.mesh, mesh_rule),
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
        if not is_valid:
            raise ValueError(
                f"{name}={value!r} is not allowed: on this mesh it must be {allowed}. Change it or "
                "--mesh."
            )


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of each array of a state, by its name."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        names = names[:-1] if names and names[-1] == "value" else names
        for suffix, axes in _MATRIX_AXES.items():
            if names[-len(suffix) :] == suffix:
                layers = (None,) * (leaf.ndim - 2)  # with scan_layers
                return NamedSharding(mesh, P(*layers, *axes))
        return NamedSharding(mesh, P())

    return jax.tree.map_with_path(sharding, tree)


def shard_state(mesh: Mesh, tree: Any) -> Any:
    """Shard a state, which every process has completely, over the mesh."""

    def shard(leaf: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(shard, tree, state_shardings(mesh, tree))


def abstract_state(mesh: Mesh, tree: Any) -> Any:
    """The shapes, dtypes and shardings of a state on the mesh, without its arrays."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        state_shardings(mesh, tree),
    )


def abstract_batch(mesh: Mesh, shape: tuple[int, int], dtype: Any = np.int32) -> Batch:
    """The shape, dtype and sharding of a batch on the mesh, without its arrays."""
    tokens: Any = jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
    return Batch(tokens, tokens)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds completely."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its rows over "data" and "fsdp"."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def shard_batch(
    mesh: Mesh,
    shape: tuple[int, int],
    load_rows: Callable[[slice], AnyBatch],
    kind: type[AnyBatch] = Batch,
) -> AnyBatch:
    """A batch of this kind on the mesh; `load_rows` is called for this process's rows only."""
    sharding = batch_sharding(mesh)
    loaded: dict[tuple[int, int], AnyBatch] = {}

    def shard(index: Any, field: int) -> np.ndarray:
        start, stop, _ = index[0].indices(shape[0])
        if (start, stop) not in loaded:
            loaded[start, stop] = load_rows(slice(start, stop))
        return loaded[start, stop][field]

    arrays: Any = (
        jax.make_array_from_callback(
            shape, sharding, lambda index, field=field: shard(index, field)
        )
        for field in range(len(kind._fields))
    )
    return kind(*arrays)


def constrain_batch_sharding(x: jax.Array, axis: int = 0) -> jax.Array:
    """Keep an activation sharded by the rows of the batch, whatever the sharding of the weights."""
    mesh = jax.sharding.get_abstract_mesh()
    if "fsdp" not in mesh.axis_names or x.shape[axis] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, P(*(None,) * axis, ("data", "fsdp")))


def constrain_replicated(x: jax.Array) -> jax.Array:
    """Gather an array on every device; its gradient is summed and sharded again."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(x, P()) if "fsdp" in mesh.axis_names else x


def use_mesh(mesh: Mesh) -> AbstractContextManager[Any]:
    """Make this the current mesh, so that attention is sharded on it; no effect on one device."""
    return jax.set_mesh(mesh) if mesh.size > 1 else nullcontext()


class MeshFunction(NamedTuple):
    """A jitted function that is traced and called with the mesh as the current mesh."""

    mesh: Mesh
    function: Any

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        with use_mesh(self.mesh):
            return self.function(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Lower the function, as `jax.jit(...).lower` does."""
        with use_mesh(self.mesh):
            return self.function.lower(*args)
