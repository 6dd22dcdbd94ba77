"""The step: pure, learning, and every setting of the optimizer as stated."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONFIG, SITES, with_dropout

from dropout_jax import fold
from minigpt.config import OptimConfig
from minigpt.data.batches import make_batch
from minigpt.training.optimizer import build_optimizer, learning_rate_schedule
from minigpt.training.train_step import build_train_functions

TOKENS = np.random.default_rng(0).integers(0, 11, 500).astype(np.uint16)
BATCH = make_batch(TOKENS, 0, 0, 3, 32)
DROPPED = dataclasses.replace(CONFIG, model=with_dropout(**dict.fromkeys(SITES, 0.25)))


compiled = functools.cache(lambda config: build_train_functions(config, 11))


def losses(config, steps, key, data=BATCH):
    training = compiled(config)
    state, step_losses = jax.tree.map(jnp.copy, training.state), []  # the step takes it over
    for _ in range(steps):
        state, measured = training.train_step(state, data, key)
        step_losses.append(float(measured["train_loss"]))
    return step_losses


@pytest.mark.slow
def test_it_learns_a_batch_by_heart(key):
    config = dataclasses.replace(CONFIG, steps=200, optim=OptimConfig(1e-2, 1e-3, 10))
    step_losses = losses(config, 200, key)
    assert step_losses[0] == pytest.approx(np.log(11), rel=0.02)
    assert step_losses[-1] < step_losses[0] / 2


@pytest.mark.slow
def test_same_key_same_run_and_another_key_another(key):
    assert losses(DROPPED, 3, key) == losses(DROPPED, 3, key)
    assert losses(DROPPED, 3, key) != losses(DROPPED, 3, fold(key, "other"))
    assert losses(CONFIG, 3, key) == losses(CONFIG, 3, fold(key, "other"))


def test_the_step_is_folded_into_the_key(key):
    """With a learning rate of almost nothing, only the masks can change the loss."""
    still = OptimConfig(learning_rate=1e-30, min_learning_rate=0.0)
    frozen = dataclasses.replace(DROPPED, optim=still)
    assert len(set(losses(frozen, 4, key))) == 4
    frozen = dataclasses.replace(CONFIG, optim=still)
    assert len(set(losses(frozen, 4, key))) == 1


def test_the_state_is_donated_and_counts_steps(key):
    training = build_train_functions(CONFIG, 11)
    state, _ = training.train_step(training.state, BATCH, key)
    assert state.step == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(training.state.params))


def test_evaluation_ignores_dropout():
    plain, dropped = build_train_functions(CONFIG, 11), build_train_functions(DROPPED, 11)
    np.testing.assert_array_equal(
        plain.eval_step(plain.state.params, BATCH), dropped.eval_step(dropped.state.params, BATCH)
    )


def test_schedule_is_nanogpts():
    config = OptimConfig(1e-3, 1e-4, 100)
    rate = learning_rate_schedule(config, 2000)
    by_hand = {0: 1e-3 / 101, 50: 1e-3 * 51 / 101, 100: 1e-3, 1050: 5.5e-4, 2000: 1e-4}
    for step, expected in by_hand.items():
        assert np.asarray(rate(step)).item() == pytest.approx(expected, rel=1e-5)


def test_only_matrices_decay():
    tx = build_optimizer(OptimConfig(weight_decay=0.5, warmup_steps=0), 10)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    updates: Any
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -1e-3 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(updates["scale"], 0)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_the_first_update_is_adamws_by_hand():
    config = OptimConfig(1e-2, 1e-3, 0, beta1=0.9, beta2=0.99, weight_decay=0.1, grad_clip=1.0)
    tx = build_optimizer(config, 10)
    params, gradient = {"kernel": jnp.full((2, 2), 3.0)}, {"kernel": jnp.full((2, 2), 5.0)}
    updates: Any
    updates, _ = tx.update(gradient, tx.init(params), params)
    # Clipped to norm 1: 0.5 each; Adam's first update is the sign; decay is 0.1 * 3.
    np.testing.assert_allclose(updates["kernel"], -1e-2 * (1 + 0.3), rtol=1e-5)
    assert optax.tree.norm(gradient) == 10
