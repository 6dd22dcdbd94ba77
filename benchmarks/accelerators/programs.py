"""What is compiled for a chip: ops, attention, training steps and generation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from op_registry import FAMILIES, OPS

import dropout_jax
from minigpt.config import PRESETS, DropoutConfig, PresetName
from minigpt.training import abstract_train_inputs, build_abstract_train_functions
from targets import CHIPS, Chip, abstract_array, abstract_key

# Implementations of attention, and the chips that each is compiled for.
ATTENTION: dict[str, tuple[str, ...]] = {
    "naive": tuple(CHIPS),
    "blockwise": tuple(CHIPS),
    "kernel": (),
}
RATE = 0.1
VOCABULARY = 77  # characters of Shakespeare's plays
SMALL: PresetName = "shakespeare-char-cpu"
MESHES = ("data=8", "fsdp=8", "tensor=4", "data=2,fsdp=2,tensor=2")
MESH_BATCH = 16


@dataclass(frozen=True)
class Program:
    """A program, how to lower it, and what must hold of it."""

    kind: str
    name: str
    lower: Callable[[], jax.stages.Lowered]
    bound_mib: float
    """its peak memory on one device must not exceed this"""
    same_collectives: str | None = None
    """all programs of a group have the same collectives"""


def programs(chip: Chip, *, full: bool) -> Iterator[Program]:
    """All programs for a chip; the short form is a part of them."""
    every = full or chip.compiles_everything
    yield from _ops(chip, every=every, dtypes=("bfloat16", "float32") if full else ("bfloat16",))
    yield from _attention(chip, full=full)
    yield from _small_steps(chip, full=full)
    yield from _preset_steps(chip, full=full)
    yield from _generation(chip, large=full or not chip.is_tpu)


def _ops(chip: Chip, *, every: bool, dtypes: tuple[str, ...]) -> Iterator[Program]:
    device = chip.topology(1).devices[0]
    for op in OPS:
        if not every and str(op) not in FAMILIES:
            continue
        dims = min(3, max(len(shape) for shape in op.shapes))
        for dtype in dtypes:
            x = abstract_array(device, {2: (1024, 768), 3: (8, 128, 768)}[dims], dtype)

            def lower(op: Any = op, x: Any = x) -> jax.stages.Lowered:
                def both(key: jax.Array, x: jax.Array, cotangent: jax.Array) -> Any:
                    y, pull_back = jax.vjp(lambda x: op.fn(x, RATE, key=key), x)
                    return y, pull_back(cotangent)

                return jax.jit(both).lower(abstract_key(device), x, x)

            # XLA:TPU unpacks words to 32 bits a decision before it fuses.
            bound = (12 if chip.is_tpu else 5) * x.size * x.dtype.itemsize / 2**20
            yield Program("op", f"{op.name}, {dtype}", lower, bound)


def _attention(chip: Chip, *, full: bool) -> Iterator[Program]:
    """Forward and backward, causal, with dropout."""
    device = chip.topology(1).devices[0]
    batch, length, heads, dim = (4, 1024, 12, 64) if full else (2, 512, 4, 64)
    for implementation, chips in ATTENTION.items():
        if chip.name not in chips:
            continue
        for dtype in ("bfloat16", "float32") if full else ("bfloat16",):
            query = abstract_array(device, (batch, length, heads, dim), dtype)

            def lower(implementation: str = implementation, query: Any = query) -> Any:
                return _lower_attention(device, implementation, query)

            inputs = 4 * query.size * query.dtype.itemsize  # query, key, value, cotangent
            weights = 4 * batch * heads * length**2  # one float32 array of all weights
            bound = (4 * weights + 4 * inputs) if implementation == "naive" else 9 * inputs
            yield Program("attention", f"{implementation}, {dtype}", lower, bound / 2**20)


def _lower_attention(device: Any, implementation: str, query: Any) -> jax.stages.Lowered:
    def both(key: jax.Array, arrays: Any, cotangent: jax.Array) -> Any:
        def attend(*arrays: jax.Array) -> jax.Array:
            return dropout_jax.dot_product_attention(
                *arrays,
                is_causal=True,
                dropout_rate=RATE,
                dropout_key=key,
                implementation=implementation,
            )

        y, pull_back = jax.vjp(attend, *arrays)
        return y, pull_back(cotangent)

    return jax.jit(both).lower(abstract_key(device), (query,) * 3, query)


def _small_steps(chip: Chip, *, full: bool) -> Iterator[Program]:
    """The small preset on one device and on meshes, with dropout and without."""
    settings: dict[str, Any] = {} if full else {"n_layer": 2}
    bound = 64 if full else 32
    yield _step(chip, SMALL, "data=1", RATE, batch_size=12, bound_mib=bound, **settings)
    for mesh in MESHES if full or chip.name == "v5e" else MESHES[-1:]:
        for rate in (0.0, RATE):
            group = f"{SMALL} {mesh}"
            yield _step(chip, SMALL, mesh, rate, bound_mib=bound, group=group, **settings)


def _preset_steps(chip: Chip, *, full: bool) -> Iterator[Program]:
    """The other presets in bfloat16, the layers in a scan.

    The short form takes two layers, one device on an H100, and all axes of a mesh on a v5e.
    """
    settings: dict[str, Any] = {"dtype": "bfloat16", "scan_layers": True}
    if full:
        meshes = ("data=1", *MESHES)
    else:
        settings["n_layer"] = 2
        meshes = {"h100": ("data=1",), "v5e": MESHES[-1:]}.get(chip.name, ())
    bounds: dict[PresetName, float] = {"shakespeare-char": 400, "gpt2": 7000}
    if full:
        bounds = {"shakespeare-char": 1200, "gpt2": 15750}
    for preset, bound in bounds.items():
        for mesh in meshes:
            rows = 12 if mesh == "data=1" else MESH_BATCH if full else 8
            yield _step(chip, preset, mesh, RATE, batch_size=rows, bound_mib=bound, **settings)
    if full:
        yield from _large_steps(chip)


def _large_steps(chip: Chip) -> Iterator[Program]:
    """The gpt2 preset on 64 and 256 chips."""
    settings: dict[str, Any] = {"dtype": "bfloat16", "scan_layers": True}
    for devices, mesh, rows in (
        (64, "data=8,fsdp=4,tensor=2", 64),
        (256, "data=32,fsdp=4,tensor=2", 256),
    ):
        if devices in chip.topologies:
            yield _step(chip, "gpt2", mesh, RATE, batch_size=rows, bound_mib=9000, **settings)


def _step(
    chip: Chip,
    preset: PresetName,
    mesh: str,
    rate: float,
    *,
    bound_mib: float,
    batch_size: int = MESH_BATCH,
    group: str | None = None,
    **settings: Any,
) -> Program:
    config = PRESETS[preset]
    model = dataclasses.replace(config.model, dropout=DropoutConfig.uniform(rate), **settings)
    config = dataclasses.replace(config, model=model, mesh=mesh, batch_size=batch_size)

    def lower() -> jax.stages.Lowered:
        sizes = [int(part.partition("=")[2]) for part in mesh.split(",")]
        devices = math.prod(sizes)
        topology = chip.topology(next(n for n in sorted(chip.topologies) if n >= devices))
        steps = build_abstract_train_functions(
            config, model.vocab_size or VOCABULARY, topology.devices
        )
        return steps.train_step.lower(*abstract_train_inputs(steps, config))

    if mesh not in ("data=1", "tensor=4"):  # these do not shard the rows
        bound_mib *= 0.45
    layers = f"{model.n_layer} layers{' in a scan' if model.scan_layers else ''}, {model.dtype}"
    name = f"{preset}, {layers}, batch {batch_size}, {mesh}, rate {rate}"
    return Program("step", name, lower, bound_mib, group)


def _generation(chip: Chip, *, large: bool) -> Iterator[Program]:
    """One token of generation: the logits of a window."""
    for preset in ("shakespeare-char-cpu", "gpt2") if large else ("shakespeare-char-cpu",):
        config = PRESETS[preset]
        model = dataclasses.replace(config.model, scan_layers=True)
        config = dataclasses.replace(config, model=model, mesh="data=1")

        def lower(config: Any = config) -> jax.stages.Lowered:
            devices = chip.topology(1).devices
            vocabulary = config.model.vocab_size or VOCABULARY
            steps = build_abstract_train_functions(config, vocabulary, devices)
            window = abstract_array(devices[0], (1, config.model.block_size), jnp.int32)
            return steps.logits.lower(steps.state.params, window)

        yield Program("generation", f"{preset}, without a cache", lower, 2000)
