"""Ask the compiler about a training step for devices that are not there: memory, collectives."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

import jax

from minigpt.config import Config
from minigpt.distributed import Topology, count_collectives
from minigpt.training.context import count_parameters
from minigpt.training.throughput import peak_flops_per_s, training_flops_per_token
from minigpt.training.train_step import abstract_train_inputs, build_abstract_train_functions

ASSUMED_UTILIZATION = 0.4


class TrainPlan(NamedTuple):
    """What the compiler says of a training step, and a speed that is assumed."""

    topology: str
    device_kind: str
    mesh: dict[str, int]
    batch_size: int
    parameters: int
    fits: bool
    peak_bytes: int | None
    """largest memory of one device during the step; None: too large, and the compiler said no size
    """
    hbm_bytes: int
    """memory of one device that a program may use"""
    collectives: dict[str, int] | None
    """number by kind; None: the program was refused"""
    flops_per_step: float
    """that the model needs, forward and backward; see flops_per_token"""
    assumed_utilization: float
    assumed_tokens_per_s: float
    """at this utilization of the devices' peak; an assumption, not a measurement"""
    compile_s: float


def plan_training(config: Config, vocab_size: int, topology: Topology) -> TrainPlan:
    """Compile the training step for a topology; a step that does not fit gives a plan that says so.

    Nothing runs on a device.
    """
    steps = build_abstract_train_functions(config, vocab_size, topology.devices)
    inputs = abstract_train_inputs(steps, config)
    parameters = count_parameters(steps.state.params)
    kind, tokens = topology.devices[0].device_kind, config.batch_size * config.model.block_size
    flops = training_flops_per_token(config, steps.state.params)
    peak = peak_flops_per_s(kind)
    assert peak is not None
    start = time.perf_counter()
    peak_bytes, collectives = _compile(steps.train_step.lower(*inputs))
    fits = collectives is not None and (peak_bytes or 0) <= topology.hbm_bytes
    return TrainPlan(
        topology=topology.name,
        device_kind=kind,
        mesh=dict(steps.mesh.shape),
        batch_size=config.batch_size,
        parameters=parameters,
        fits=fits,
        peak_bytes=peak_bytes,
        hbm_bytes=topology.hbm_bytes,
        collectives=collectives,
        flops_per_step=flops * tokens,
        assumed_utilization=ASSUMED_UTILIZATION,
        assumed_tokens_per_s=ASSUMED_UTILIZATION * peak * steps.mesh.size / flops,
        compile_s=round(time.perf_counter() - start, 1),
    )


def _compile(lowered: jax.stages.Lowered) -> tuple[int | None, dict[str, int] | None]:
    """The peak memory and the collectives; no collectives if the compiler refuses the size."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return refused_bytes(str(error)), None
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.peak_memory_in_bytes, count_collectives(compiled.as_text() or "")


def refused_bytes(message: str) -> int | None:
    """The memory that a program needs by the message of the compiler that refuses it."""
    size = re.search(r"(?:Used |\()([\d.]+)([KMGT])\)? (?:of|exceeds)", message)
    return int(float(size[1]) * 2 ** (10 * (1 + "KMGT".index(size[2])))) if size else None
