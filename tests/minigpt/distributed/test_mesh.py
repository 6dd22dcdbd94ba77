"""One trainer from 1 device to 8: data parallel, FSDP and tensor parallel, masks the same."""

import collections
import dataclasses
import re

import jax
import numpy as np
import pytest
from marks import slow
from tiny import CONFIG, SITES, with_dropout

from minigpt.checkpoint import manager as checkpoint
from minigpt.data.batches import make_batch
from minigpt.distributed.mesh import AXES, make_mesh, state_shardings
from minigpt.training.train_step import build_train_functions

TOKENS = np.random.default_rng(0).integers(0, 11, 500).astype(np.uint16)
# All axes at once for every change; one of each kind is slow; the others are under torture.
MESHES = [
    "data=2,fsdp=2,tensor=2",
    *(slow(mesh) for mesh in ("data=8", "fsdp=8", "tensor=8")),
    *(
        pytest.param(mesh, marks=pytest.mark.torture)
        for mesh in ("data=2", "data=4", "fsdp=2", "tensor=2", "data=4,tensor=2", "fsdp=4,tensor=2")
    ),
]


def config(mesh, rate=0.25, **changes):
    model = dataclasses.replace(CONFIG.model, n_head=8, n_embd=32)
    model = with_dropout(model, **dict.fromkeys(SITES, rate))
    return dataclasses.replace(CONFIG, mesh=mesh, batch_size=8, steps=50, model=model, **changes)


def losses(settings, steps=50):
    training = build_train_functions(settings, 11)
    state, key, step_losses = training.state, jax.random.key(1), []
    for step in range(steps):
        rows = training.put_batch(make_batch(TOKENS, 0, step, 8, 32))
        state, measured = training.train_step(state, rows, key)
        step_losses.append(float(measured["train_loss"]))
    return np.array(step_losses), state, training


@pytest.fixture(scope="module")
def alone():
    return losses(config("data=1"))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.slow
def test_losses_are_those_of_one_device(mesh, alone):
    step_losses, state, _ = losses(config(mesh))
    np.testing.assert_allclose(step_losses[0], alone[0][0], rtol=1e-5)
    np.testing.assert_allclose(step_losses, alone[0], rtol=1e-3)
    kernel = jax.tree.leaves(state.params)[0]
    assert len(kernel.sharding.device_set) == len(make_mesh(config(mesh)).devices.flat)


@pytest.mark.slow
def test_another_mask_would_be_noticed(alone):
    """The bound of the first step is tight: without dropout, or with another key, it fails."""
    training = build_train_functions(config("data=2"), 11)
    rows = training.put_batch(make_batch(TOKENS, 0, 0, 8, 32))
    _, measured = training.train_step(training.state, rows, jax.random.key(2))
    assert abs(float(measured["train_loss"]) / alone[0][0] - 1) > 1e-4


def collectives(settings):
    training = build_train_functions(settings, 11)
    rows = training.put_batch(make_batch(TOKENS, 0, 0, 8, 32))
    text = training.train_step.lower(training.state, rows, jax.random.key(0)).compile().as_text()
    assert text is not None
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    return collections.Counter(re.findall(rf" ({kinds})(?:-start)?\(", text))


@pytest.mark.parametrize(
    "mesh",
    [
        "data=2,fsdp=2,tensor=2",
        slow("data=8"),
        slow("fsdp=8"),
    ],
)
def test_no_collective_comes_from_dropout(mesh):
    without, with_dropout = (collectives(config(mesh, rate)) for rate in (0.0, 0.2))
    assert with_dropout == without
    assert without


def bytes_of_state(mesh):
    """What one device holds between steps, and what its step needs besides."""
    training = build_train_functions(config(mesh), 11)
    rows = training.put_batch(make_batch(TOKENS, 0, 0, 8, 32))
    lowered = training.train_step.lower(training.state, rows, jax.random.key(0))
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes


@pytest.mark.slow
def test_memory_a_device_falls_as_parameters_are_sharded():
    sizes = [bytes_of_state(mesh) for mesh in ("data=8", "data=4,fsdp=2", "fsdp=8")]
    arguments = [argument for argument, _ in sizes]
    assert arguments[1] < 0.6 * arguments[0]
    assert arguments[2] < 0.2 * arguments[0]
    peaks = [argument + temporary for argument, temporary in sizes]
    assert peaks == sorted(peaks, reverse=True)


def test_tensor_parallel_matrices_are_cut_as_stated():
    training = build_train_functions(config("fsdp=2,tensor=4"), 11)
    shards = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.addressable_shards[0].data
        for path, leaf in jax.tree.leaves_with_path(training.state)
    }
    for moments in ("params", "opt_state/1/0/mu", "opt_state/1/0/nu"):
        where = f"{moments}/blocks/1"
        assert shards[f"{where}/attn/qkv/kernel/value"].shape == (16, 24)
        assert shards[f"{where}/attn/out/kernel/value"].shape == (8, 16)
        assert shards[f"{where}/mlp/wide/kernel/value"].shape == (16, 32)
        assert shards[f"{where}/mlp/out/kernel/value"].shape == (32, 16)
        assert shards[f"{moments}/tokens/embedding/value"].shape == (11, 16)
        assert shards[f"{where}/mlp_norm/scale/value"].shape == (32,)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2,fsdp=2,tensor=2", slow("fsdp=8")])
def test_a_checkpoint_of_one_mesh_goes_on_on_another(mesh, alone, tmp_path):
    _, state, training = losses(config("data=2,tensor=4"), 3)
    with checkpoint.CheckpointWriter(tmp_path) as writer:
        writer.save(3, checkpoint.host_arrays(training.gather_state(state)), {})
    other = build_train_functions(config(mesh), 11)
    again, _ = checkpoint.restore(tmp_path, other.state)
    for one, two in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, two)
    rows = other.put_batch(make_batch(TOKENS, 0, 3, 8, 32))
    _, measured = other.train_step(other.put_state(again), rows, jax.random.key(1))
    assert float(measured["train_loss"]) == pytest.approx(alone[0][3], rel=1e-4)


def test_the_default_spreads_the_batch_over_the_devices():
    assert dict(make_mesh(config(None)).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    three = dataclasses.replace(config(None), batch_size=12)
    assert make_mesh(three).shape["data"] == 4
    assert tuple(make_mesh(three).axis_names) == AXES


def test_a_scan_over_layers_is_sharded_alike():
    model = dataclasses.replace(config("fsdp=2,tensor=4").model, scan_layers=True)
    training = build_train_functions(
        dataclasses.replace(config("fsdp=2,tensor=4"), model=model), 11
    )
    kernel = training.state.params["blocks"]["attn"]["qkv"]["kernel"]
    assert jax.tree.leaves(kernel)[0].addressable_shards[0].data.shape == (2, 16, 24)
    assert jax.tree.structure(state_shardings(training.mesh, training.state)) == jax.tree.structure(
        training.state
    )


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data=0", "must give sizes of at least 1"),
        ("data", "must give sizes"),
        ("rows=2", "must give sizes"),
        ("data=2,data=2", "must give sizes"),
        ("data=16", r"of at most the 8 devices that are available, not 16"),
        ("data=3", r"batch_size=8 is not allowed: on this mesh it must be a multiple of 3"),
        ("fsdp=5", "batch_size=8"),
        ("tensor=3", r"model.n_head=8 is not allowed: on this mesh it must be a multiple of t"),
    ],
)
def test_meshes_that_do_not_fit_are_named(mesh, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(config(mesh))
