"""The options of training that change how a step is computed, and not what it is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from marks import slow
from tiny import CONFIG, SITES, with_dropout

from dropout_jax import fold
from minigpt.data.batches import make_batch
from minigpt.model.gpt import GPT
from minigpt.training.train_step import build_train_functions, token_losses

TOKENS = np.random.default_rng(0).integers(0, 11, 500).astype(np.uint16)
BATCH = make_batch(TOKENS, 0, 0, 8, 32)
KEY = jax.random.key(3)


def config(model=(), **changes):
    shape = with_dropout(**dict.fromkeys(SITES, 0.25))
    shape = dataclasses.replace(shape, **dict(model))
    base = dataclasses.replace(CONFIG, batch_size=8, mesh="data=1", model=shape)
    return dataclasses.replace(base, **changes)


@functools.cache
def run(settings, steps=3):
    """Losses of some steps, the state after them, and the temporaries of a step in bytes."""
    training = build_train_functions(settings, 11)
    rows = training.put_batch(BATCH)
    lowered = training.train_step.lower(training.state, rows, KEY)
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    temporaries = memory.temp_size_in_bytes
    state, losses = training.state, []
    for _ in range(steps):
        state, measured = training.train_step(state, rows, KEY)
        losses.append(float(measured["train_loss"]))
    return losses, state, temporaries


def params_of(state):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])


@pytest.mark.parametrize("parts", [slow(2), 4, slow(8)])
def test_accumulation_is_the_large_batch_with_its_masks(parts):
    losses, state, temporaries = run(config())
    in_parts, state_in_parts, less = run(config(accumulate=parts))
    np.testing.assert_allclose(in_parts, losses, rtol=1e-6)
    # Adam's first steps have the size of the learning rate whatever the gradient's: 3e-3 in all.
    np.testing.assert_allclose(params_of(state_in_parts), params_of(state), atol=3e-5)
    assert less < temporaries


@pytest.mark.slow
def test_a_part_with_masks_of_its_own_would_be_noticed():
    """The bound is tight: the loss of parts that all have the first part's masks differs."""
    losses, _, _ = run(config())
    graph, params = nnx.split(GPT(config().model, 11, rngs=nnx.Rngs(CONFIG.seed)))
    key = fold(KEY, "dropout", jnp.uint32(0))
    halves = [jax.tree.map(lambda rows, i=i: rows[i : i + 4], BATCH) for i in (0, 4)]
    wrong = np.mean([token_losses(graph, params, half, key).mean() for half in halves])
    right = np.mean(
        [
            token_losses(graph, params, half, key, row_offset=jnp.uint32(i)).mean()
            for i, half in zip((0, 4), halves, strict=True)
        ]
    )
    assert right == pytest.approx(losses[0], rel=1e-6)
    assert abs(wrong / losses[0] - 1) > 1e-5


@pytest.mark.slow
def test_parts_on_a_mesh_are_those_of_one_device():
    losses, _, _ = run(config())
    on_mesh, _, _ = run(config(accumulate=2, mesh="data=2,fsdp=2"))
    np.testing.assert_allclose(on_mesh, losses, rtol=1e-5)


@pytest.mark.parametrize("how", [slow({"remat": True}), {"scan_layers": True}])
@pytest.mark.slow
def test_remat_and_scan_are_the_same_run(how):
    losses, state, _ = run(config())
    other, other_state, _ = run(config(how.items()))
    np.testing.assert_allclose(other, losses, rtol=1e-6)
    assert np.sort(params_of(state)) == pytest.approx(np.sort(params_of(other_state)), abs=3e-5)


@pytest.mark.slow
def test_remat_needs_less_memory_and_a_scan_a_shorter_program():
    """(Without a scan XLA:CPU keeps what it is told to compute again.)"""
    deep = {"n_layer": 8}
    scanned = deep | {"scan_layers": True}
    _, _, temporaries = run(config(scanned.items()))
    _, _, less = run(config((scanned | {"remat": True}).items()))
    assert less < 0.2 * temporaries

    def length(how, layers):
        training = build_train_functions(config((how | {"n_layer": layers}).items()), 11)
        return len(training.train_step.lower(training.state, BATCH, KEY).as_text())

    assert length({}, 8) > 1.3 * length({}, 4)
    assert length({"scan_layers": True}, 8) < 1.01 * length({"scan_layers": True}, 4)


@pytest.mark.slow
def test_scanned_layers_decay_and_clip_alike():
    """Vectors are stacked into matrices there, and must not decay."""
    strong = dataclasses.replace(CONFIG.optim, weight_decay=5.0)
    _, state, _ = run(config(optim=strong))
    _, scanned, _ = run(config({"scan_layers": True}.items(), optim=strong))
    one = np.stack([block["attn_norm"]["scale"][...] for block in state.params["blocks"].values()])
    np.testing.assert_allclose(scanned.params["blocks"]["attn_norm"]["scale"][...], one, atol=3e-5)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    losses, _, _ = run(config())
    low, state, _ = run(config({"dtype": "bfloat16"}.items()))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    np.testing.assert_allclose(low, losses, rtol=2e-3)
    assert low != losses
    training = build_train_functions(config({"dtype": "bfloat16"}.items()), 11)
    text = training.eval_step.lower(training.state.params, BATCH).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("bf16" in line for line in products)


@pytest.mark.slow
def test_label_smoothing_by_hand():
    training = build_train_functions(config(), 11)
    logits = np.asarray(training.logits(training.state.params, BATCH.inputs), np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    right = np.take_along_axis(logs, BATCH.targets[..., None], -1)[..., 0]
    expected = -(0.9 * right + 0.1 * logs.mean(-1)).mean()
    plain = with_dropout()
    smooth = dataclasses.replace(config(label_smoothing=0.1), model=plain)
    training = build_train_functions(smooth, 11)
    _, measured = training.train_step(training.state, training.put_batch(BATCH), KEY)
    assert float(measured["train_loss"]) == pytest.approx(expected, rel=1e-6)
    evaluated = training.eval_step(
        build_train_functions(smooth, 11).state.params, training.put_batch(BATCH)
    )
    assert float(np.mean(evaluated)) == pytest.approx(-right.mean(), rel=1e-6)


@pytest.mark.slow
def test_norms_are_measured():
    training = build_train_functions(config(), 11)
    state, measured = training.train_step(training.state, training.put_batch(BATCH), KEY)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(state.params)))
    assert float(measured["param_norm"]) == pytest.approx(norm, rel=1e-5)
    assert 0 < float(measured["grad_norm"]) < 10
