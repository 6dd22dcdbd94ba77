"""The step for devices that are not there: the same program, and what the compiler says of it."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from marks import slow
from tiny import CONFIG, SITES, with_dropout

from minigpt.distributed import Topology
from minigpt.training import plan, throughput
from minigpt.training.plan import plan_training, refused_bytes
from minigpt.training.train_step import (
    abstract_train_inputs,
    build_abstract_train_functions,
    build_train_functions,
    make_train_batch,
)

VOCABULARY = 11
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 500).astype(np.uint16)
REFUSED = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 93.75G of 15.75G hbm. Exceeded hbm capacity by 78.00G."
)


def settings(mesh="data=2,fsdp=2,tensor=2", **changes):
    model = with_dropout(CONFIG.model, **dict.fromkeys(SITES, 0.25))
    return dataclasses.replace(CONFIG, mesh=mesh, batch_size=8, model=model, **changes)


@pytest.mark.parametrize("mesh", [slow("data=1"), "data=2,fsdp=2,tensor=2"])
def test_the_abstract_step_is_the_step_of_training(mesh):
    config = settings(mesh)
    real = build_train_functions(config, VOCABULARY)
    batch = make_train_batch(real.mesh, TOKENS, config, 0)
    key = jax.device_put(jax.random.key(0), jax.sharding.NamedSharding(real.mesh, jax.P()))
    abstract = build_abstract_train_functions(config, VOCABULARY, jax.devices())
    inputs = abstract_train_inputs(abstract, config)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(inputs))
    assert (
        abstract.train_step.lower(*inputs).as_text()
        == real.train_step.lower(real.state, batch, key).as_text()
    )


@pytest.mark.slow
def test_a_plan_says_what_the_compiler_says(monkeypatch):
    monkeypatch.setitem(throughput.PEAKS, "cpu", 1e12)
    config = settings()
    topology = Topology("cpu:8", jax.devices(), 2**30)
    result = plan_training(config, VOCABULARY, topology)
    assert result.fits
    assert 0 < (result.peak_bytes or 0) < 2**30
    assert result.mesh == {"data": 2, "fsdp": 2, "tensor": 2}
    assert result.collectives
    assert result.collectives["all-reduce"] > 0
    tokens = config.batch_size * config.model.block_size
    flops = throughput.flops_per_token(config.model, result.parameters)
    assert result.flops_per_step == flops * tokens
    assert result.assumed_tokens_per_s == pytest.approx(0.4 * 8e12 / flops)
    small = topology._replace(hbm_bytes=1000)
    assert not plan_training(config, VOCABULARY, small).fits


def test_a_program_that_the_compiler_refuses_does_not_fit():
    def refuse():
        raise jax.errors.JaxRuntimeError(REFUSED)

    lowered = types.SimpleNamespace(compile=refuse)
    assert plan._compile(lowered) == (int(93.75 * 2**30), None)  # type: ignore[arg-type]


def test_another_error_of_the_compiler_is_not_hidden():
    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        plan._compile(types.SimpleNamespace(compile=fail))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (REFUSED, int(93.75 * 2**30)),
        ("the total memory required for HLO temporaries (512.50M) exceeds available", 537395200),
        ("Ran out of memory.", None),
    ],
)
def test_the_size_is_read_from_both_forms_of_the_message(message, expected):
    assert refused_bytes(message) == expected
