"""XLA shards the step of every mesh without replicating an activation as its last resort."""

import os
import subprocess
import sys

import pytest
from marks import slow

PROGRAM = """
import dataclasses, sys
import jax
from minigpt.config import PRESETS, DropoutConfig
from minigpt.training import abstract_train_inputs, build_abstract_train_functions

name, batch_size, vocabulary = sys.argv[1], 16, 65
llama = {"activation": "swiglu", "norm_type": "rmsnorm", "positions": "rotary"}
llama |= {"n_kv_head": 2, "n_inner": 320, "tied_head": False}
parts = llama if name == "llama" else {}
for mesh in sys.argv[2:]:
    config = PRESETS["shakespeare-char-cpu" if parts else name]
    dropout = DropoutConfig.uniform(0.1)
    parts |= {"n_layer": 2, "scan_layers": True, "dropout": dropout}
    model = dataclasses.replace(config.model, **parts)
    config = dataclasses.replace(config, model=model, mesh=mesh, batch_size=batch_size)
    steps = build_abstract_train_functions(config, model.vocab_size or vocabulary, jax.devices())
    steps.train_step.lower(*abstract_train_inputs(steps, config)).compile()
    print("compiled", mesh)
"""
ALL_AXES = "data=2,fsdp=2,tensor=2"
MESHES = ("data=8", "fsdp=8", "tensor=4", ALL_AXES)


@pytest.mark.parametrize(
    ("name", "meshes"),
    [
        ("shakespeare-char-cpu", (ALL_AXES,)),
        slow("shakespeare-char-cpu", MESHES),
        slow("gpt2", MESHES),
        slow("llama", MESHES),
    ],
)
def test_no_mesh_makes_xla_replicate_an_activation(name, meshes):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, *meshes],
        env=os.environ | {"XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split("\n")[:-1] == [f"compiled {mesh}" for mesh in meshes], result.stderr
    assert "rematerialization" not in result.stderr
