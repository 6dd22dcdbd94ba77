"""Rates over depth and over steps, traced without recompilation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from dropout_jax import curriculum_dropout, dropout, early_dropout, late_dropout, linear_over_depth


@pytest.fixture
def promotion():
    """optax's schedules rely on implicit promotion."""
    return "standard"


@pytest.mark.parametrize("n_layer", [1, 2, 12])
def test_depth_is_timms(n_layer):
    """timm and Swin: torch.linspace(0, rate, depth); one layer has the rate, not 0."""
    rates = linear_over_depth(0.3, n_layer)
    expected = torch.linspace(0, 0.3, n_layer).tolist() if n_layer > 1 else [0.3]
    np.testing.assert_allclose(rates, expected, atol=1e-7)


def test_early_late_and_curriculum_by_hand():
    steps = jnp.arange(5)
    np.testing.assert_allclose(early_dropout(0.2, 3)(steps), [0.2, 0.2, 0.2, 0, 0])
    np.testing.assert_allclose(late_dropout(0.2, 3)(steps), [0, 0, 0, 0.2, 0.2])
    theta, gamma = 0.5, 0.01
    kept = (1 - theta) * np.exp(-gamma * np.arange(5)) + theta  # Morerio et al., equation 2
    np.testing.assert_allclose(curriculum_dropout(0.5, gamma)(steps), 1 - kept, atol=1e-7)


@pytest.mark.parametrize(
    "schedule",
    [
        early_dropout(0.4, 3),
        late_dropout(0.4, 3),
        curriculum_dropout(0.4, 0.5),
        optax.linear_schedule(0.4, 0.0, 6),
        optax.cosine_decay_schedule(0.4, 6),
    ],
)
def test_a_rate_that_changes_every_step_compiles_once(schedule, key):
    traces = []

    @jax.jit
    def step(x, step, key):
        traces.append(1)
        return dropout(x, schedule(step), key=key)

    x = jnp.ones(4000)
    shares = []
    for i in range(7):
        shares.append(float((step(x, jnp.int32(i), jax.random.fold_in(key, i)) == 0).mean()))
    assert len(traces) == 1
    expected = np.array([float(schedule(jnp.int32(i))) for i in range(7)])
    sd = np.sqrt(expected * (1 - expected) / 4000)
    assert (abs(shares - expected) <= 4.9 * sd + 1e-4).all()
    assert np.ptp(expected) > 0.3
