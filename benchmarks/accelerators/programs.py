"""What is compiled for a chip: ops, attention, training steps and generation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from op_registry import FAMILIES, OPS

from attention import attention_programs
from dropout import dropout_programs
from minigpt.config import PRESETS, Config, DropoutConfig, PresetName
from minigpt.training import abstract_train_inputs, build_abstract_train_functions
from program import Program
from targets import Chip, abstract_array, abstract_key

ENVIRONMENT = "DROPOUT_JAX_ATTENTION"
RATE = 0.1
VOCABULARY = 77  # characters of Shakespeare's plays
SMALL: PresetName = "shakespeare-char-cpu"
MESHES = ("data=8", "fsdp=8", "tensor=4", "data=2,fsdp=2,tensor=2")
MESH_BATCH = 16


def programs(chip: Chip, *, full: bool) -> Iterator[Program]:
    """All programs for a chip; the short form is a part of them."""
    yield from _ops(chip, full=full)
    if chip.in_depth:
        yield from dropout_programs(chip, full=full)
    yield from attention_programs(chip, full=full)
    yield from _small_steps(chip, full=full)
    yield from _preset_steps(chip, full=full)
    yield from _generation(chip, full=full)


def _ops(chip: Chip, *, full: bool) -> Iterator[Program]:
    """Every op; the short form takes one of each family, and every op for a v5e only.

    XLA:GPU compiles an op in three times the seconds of XLA:TPU.
    """
    device = chip.topology(1).devices[0]
    every = full or (chip.in_depth and chip.is_tpu)
    for op in OPS:
        if not every and str(op) not in FAMILIES:
            continue
        dims = min(3, max(len(shape) for shape in op.shapes))
        for dtype in ("bfloat16", "float32") if full else ("bfloat16",):
            x = abstract_array(device, {2: (1024, 768), 3: (8, 128, 768)}[dims], dtype)

            def lower(op: Any = op, x: Any = x) -> jax.stages.Lowered:
                def both(key: jax.Array, x: jax.Array, cotangent: jax.Array) -> Any:
                    y, pull_back = jax.vjp(lambda x: op.fn(x, RATE, key=key), x)
                    return y, pull_back(cotangent)

                return jax.jit(both).lower(abstract_key(x.sharding), x, x)

            # XLA:TPU unpacks words to 32 bits a decision before it fuses.
            bound = (14 if chip.is_tpu else 5) * x.size * x.dtype.itemsize / 2**20
            yield Program("op", f"{op.name}, {dtype}", lower, bound)


def _small_steps(chip: Chip, *, full: bool) -> Iterator[Program]:
    """The small preset on one device and on meshes, with dropout and without.

    The short form takes a layer or two, and a mesh on a v5e only: XLA's partitioner is the same for
    all kinds.
    """
    if not full and chip.in_depth:
        for rate in (0.0, RATE) if chip.is_tpu else ():
            group = f"{SMALL} {MESHES[-1]}"
            yield _step(chip, SMALL, MESHES[-1], rate, bound_mib=32, group=group, n_layer=2)
        return
    settings: dict[str, Any] = {"bound_mib": 64} if full else {"bound_mib": 32, "n_layer": 1}
    yield _step(chip, SMALL, "data=1", RATE, batch_size=12, **settings)
    for mesh in MESHES if full else ():
        for rate in (0.0, RATE):
            yield _step(chip, SMALL, mesh, rate, bound_mib=64, group=f"{SMALL} {mesh}")


def _preset_steps(chip: Chip, *, full: bool) -> Iterator[Program]:
    """The other presets in bfloat16, the layers in a scan.

    The short form takes two layers of gpt2 with the attention kernel, on an H100.
    """
    settings: dict[str, Any] = {"dtype": "bfloat16", "scan_layers": True}
    if full or not chip.is_tpu:
        yield from _kernel_steps(chip, full=full, **settings, n_layer=2)
    if not full:
        return
    bounds: dict[PresetName, float] = {"shakespeare-char": 1200, "gpt2": 15750}
    for preset, bound in bounds.items():
        for mesh in ("data=1", *MESHES):
            rows = 12 if mesh == "data=1" else MESH_BATCH
            yield _step(chip, preset, mesh, RATE, batch_size=rows, bound_mib=bound, **settings)
    yield from _large_steps(chip)


def _kernel_steps(chip: Chip, *, full: bool, **settings: Any) -> Iterator[Program]:
    """The step with the attention kernel, on all axes of a mesh and, with --full, on one device."""
    settings |= {"attention": "kernel", "bound_mib": 7000}
    if full:
        yield _step(chip, "gpt2", "data=1", RATE, batch_size=12, **settings)
    for rate in (0.0, RATE):
        group = f"gpt2, kernel, {MESHES[-1]}"
        yield _step(chip, "gpt2", MESHES[-1], rate, batch_size=8, group=group, **settings)


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
    attention: str | None = None,
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
        with _choose_attention(attention):
            return steps.train_step.lower(*abstract_train_inputs(steps, config))

    if mesh not in ("data=1", "tensor=4"):  # these do not shard the rows
        bound_mib *= 0.45
    layers = f"{model.n_layer} layer{'s' * (model.n_layer > 1)}"
    layers += f"{' in a scan' if model.scan_layers else ''}, {model.dtype}"
    name = f"{preset}, {layers}, batch {batch_size}, {mesh}, rate {rate}"
    name += f", {attention} attention" if attention else ""
    kernels = 3 if attention == "kernel" else 0
    return Program("step", name, lower, bound_mib, group, attention_kernels=kernels)


@contextlib.contextmanager
def _choose_attention(implementation: str | None) -> Iterator[None]:
    """Set the variable with which a user of the trainer chooses it."""
    os.environ |= {ENVIRONMENT: implementation} if implementation else {}
    yield
    os.environ.pop(ENVIRONMENT, None)


def _generation(chip: Chip, *, full: bool) -> Iterator[Program]:
    """One token of generation: the logits of a window; and some tokens for 16 rows at a time.

    The short form takes the small preset.
    """
    for preset in (SMALL, "gpt2") if full else (SMALL,):
        config = PRESETS[preset]
        model = dataclasses.replace(config.model, scan_layers=True)
        config = dataclasses.replace(config, model=model, mesh="data=1")
        lower = functools.partial(_lower_window, chip, config)
        yield Program("generation", f"{preset}, without a cache", lower, 2000)
        lower = functools.partial(_lower_chunk, chip, config)
        yield Program("generation", f"{preset}, with a cache, 16 rows", lower, 4000)


def _lower_window(chip: Chip, config: Config) -> jax.stages.Lowered:
    devices = chip.topology(1).devices
    steps = build_abstract_train_functions(config, _rows_of_token_table(config), devices)
    window = abstract_array(devices[0], (1, config.model.block_size), jnp.int32)
    return steps.logits.lower(steps.state.params, window)


def _lower_chunk(chip: Chip, config: Config) -> jax.stages.Lowered:
    devices, vocabulary = chip.topology(1).devices, _rows_of_token_table(config)
    steps = build_abstract_train_functions(config, vocabulary, devices)
    generation = steps.generation
    params = generation.unstack.lower(steps.state.params).out_info
    window = abstract_array(devices[0], (16, config.model.block_size), jnp.int32)
    params, cache = (
        jax.tree.map(lambda leaf: abstract_array(devices[0], leaf.shape, leaf.dtype), tree)
        for tree in (params, generation.prefill.lower(params, window).out_info)
    )
    row = abstract_array(devices[0], (16,), jnp.int32)
    seeds = abstract_array(devices[0], (16,), jnp.uint32)
    number = abstract_array(devices[0], (), jnp.int32)
    temperature = abstract_array(devices[0], (), jnp.float32)
    arguments = (params, cache, row, row, seeds, number, number, temperature, None)
    return generation.draw.lower(*arguments, 50, vocabulary)


def _rows_of_token_table(config: Config) -> int:
    return config.model.vocab_size or VOCABULARY
