"""The attention programs: forward and backward in one, causal, with dropout."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

import dropout_jax
from program import MIB, Program
from targets import Chip, abstract_key

RATE = 0.1
AXES = {"Auto": AxisType.Auto, "Explicit": AxisType.Explicit}


@dataclass(frozen=True)
class Case:
    """An implementation, and the shapes and options of its program."""

    implementation: str
    dtype: str = "bfloat16"
    batch: int = 4
    length: int = 1024
    heads: int = 12
    key_heads: int = 12
    dim: int = 64
    has_bias: bool = False
    window: tuple[int, int] | None = None
    axes: str | None = None
    """the type of the axes of a 2 x 2 mesh, which shard batch and heads; None: one device"""

    @property
    def name(self) -> str:
        parts = [self.implementation, self.dtype, f"T {self.length}", f"dim {self.dim}"]
        parts += ["bias's gradient"] if self.has_bias else []
        parts += [f"window {self.window[0]}"] if self.window else []
        parts += [f"{self.key_heads} key heads"] if self.key_heads < self.heads else []
        parts += [f"2x2 mesh of {self.axes} axes"] if self.axes else []
        return ", ".join(parts)

    def bound_mib(self, *, is_tpu: bool) -> float:
        """Linear in T, but for a bias and its gradient, and for the naive form.

        XLA:TPU pads 64 dims to 128 lanes, and the kernel there wants heads before positions.
        """
        itemsize = 2 if self.dtype == "bfloat16" else 4
        inputs = 4 * self.batch * self.length * self.heads * self.dim * itemsize
        weights = 4 * self.batch * self.heads * self.length**2  # one float32 array of all
        bias = self.has_bias * self.heads * self.length**2 * itemsize
        if self.axes:
            inputs /= 4
        if self.implementation == "naive":
            return (4 * weights + 4 * inputs) / MIB
        if self.implementation == "blockwise":
            return 9 * inputs / MIB
        if is_tpu:
            times = 3.5 * max(1, 128 / self.dim)
        else:  # a power of two of dims, beside the arrays as given
            padding = 2 ** math.ceil(math.log2(self.dim)) / self.dim
            times = 2.5 * padding + (padding > 1)
        return (times * inputs + 3 * bias) / MIB


SMALL: dict[str, Any] = {"batch": 2, "length": 512, "heads": 4, "key_heads": 4}
# The short form compiles the first for every chip and the others for a v5e and an H100.
KERNEL = (
    Case("kernel"),
    Case("kernel", "float32"),
    Case("kernel", dim=128),
    Case("kernel", length=1000, key_heads=4, window=(256, 0)),
    Case("kernel", has_bias=True),
)
ON_MESHES = tuple(
    Case("kernel", batch=8, heads=8, key_heads=8, axes=axes) for axes in ("Auto", "Explicit")
)
DTYPES = "bfloat16", "float32"


def attention_programs(chip: Chip, *, full: bool) -> Iterator[Program]:
    for case in _cases(chip, full=full):
        yield Program(
            "attention",
            case.name,
            lambda case=case: _lower(chip, case),
            case.bound_mib(is_tpu=chip.is_tpu),
            attention_kernels=(3 + case.has_bias) if case.implementation == "kernel" else 0,
            has_collectives=case.axes is None,
        )


def _cases(chip: Chip, *, full: bool) -> Iterator[Case]:
    everything = full or chip.in_depth
    if everything:
        yield Case("naive", **SMALL)
        yield Case("blockwise", **SMALL)
    yield from KERNEL if everything else KERNEL[:1]
    if 4 in chip.topologies:
        yield from ON_MESHES
    if not full:
        return
    for dtype in DTYPES:
        yield Case("naive", dtype)
        yield Case("blockwise", dtype)
        if chip.is_tpu:
            for dim in (64, 128):
                yield Case("kernel", dtype, batch=1, length=32768, dim=dim)
        else:
            for dim in (32, 80, 128, 256):
                yield Case("kernel", dtype, batch=2, length=512, dim=dim)


def _lower(chip: Chip, case: Case) -> jax.stages.Lowered:
    if case.axes:
        devices = chip.topology(4).devices
        mesh = jax.make_mesh((2, 2), ("data", "tensor"), (AXES[case.axes],) * 2, devices=devices)
        context: Any = jax.set_mesh(mesh)
        sharding: Any = NamedSharding(mesh, PartitionSpec("data", None, "tensor", None))
        everywhere: Any = NamedSharding(mesh, PartitionSpec())
    else:
        device = chip.topology(1).devices[0]
        context = contextlib.nullcontext()
        sharding = everywhere = SingleDeviceSharding(device)

    def array(heads: int) -> Any:
        shape = case.batch, case.length, heads, case.dim
        return jax.ShapeDtypeStruct(shape, case.dtype, sharding=sharding)

    query, key_value = array(case.heads), array(case.key_heads)
    bias = None
    if case.has_bias:
        shape = 1, case.heads, case.length, case.length
        bias = jax.ShapeDtypeStruct(shape, case.dtype, sharding=everywhere)

    def both(key: jax.Array, arrays: Any, cotangent: jax.Array) -> Any:
        def attend(*arrays: jax.Array) -> jax.Array:
            return dropout_jax.dot_product_attention(
                *arrays,
                is_causal=True,
                local_window_size=case.window,
                dropout_rate=RATE,
                dropout_key=key,
                implementation=case.implementation,
            )

        y, pull_back = jax.vjp(attend, *arrays)
        return y, pull_back(cotangent)

    with context:
        arrays = (query, key_value, key_value, bias)
        return jax.jit(both).lower(abstract_key(everywhere), arrays, query)
