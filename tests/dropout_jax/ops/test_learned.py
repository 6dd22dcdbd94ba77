"""Learned rates: their gradients, their moments, and their penalties against integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_registry import sample
from scipy import integrate, special, stats

from dropout_jax import (
    concrete_dropout,
    concrete_dropout_penalty,
    reference,
    variational_dropout,
    variational_dropout_kl,
)

SHAPES = [(), (5,), (3, 40), (2, 3, 4), (10, 1000)]


def words(key):
    return np.asarray(jax.random.key_data(key))


def test_extreme_rates_have_finite_outputs_and_gradients(key):
    """1 - p underflows at a logit of 104."""
    for logit in (-200.0, 50.0, 100.0, 200.0):
        y, slope = jax.value_and_grad(
            lambda a: jnp.minimum(concrete_dropout(jnp.ones(50), a, key=key), 1e9).sum()
        )(logit)
        assert jnp.isfinite(y)
        assert jnp.isfinite(slope)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_learned_ops_are_the_oracles(shape, dtype, key):
    x = sample(shape, dtype)
    scale = max(16 * float(jnp.finfo(dtype).eps), 5e-5)  # of the noise, as above
    for ours, theirs in (
        (
            concrete_dropout(x, -1.0, key=key, temperature=0.5),
            reference.concrete_dropout(x, -1.0, key=words(key), temperature=0.5),
        ),
        (
            variational_dropout(x, -2.0, key=key),
            reference.variational_dropout(x, -2.0, key=words(key)),
        ),
    ):
        assert ours.dtype == x.dtype
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        np.testing.assert_allclose(ours, theirs, rtol=scale, atol=scale)


def test_no_key_is_evaluation():
    x = jnp.ones(3)
    assert concrete_dropout(x, 0.0, key=None) is x
    assert variational_dropout(x, 0.0, key=None) is x


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
def test_gradients_to_learned_rates_against_finite_differences(jit, key):
    """The key fixes the noise, so the loss is a smooth function of the rate; float64."""
    with jax.enable_x64(True):
        x = jnp.asarray(sample((20,), "float64"))

        def concrete(logit):
            return (concrete_dropout(x, logit, key=key, temperature=0.5) ** 2).sum()

        def variational(log_alpha):
            return (variational_dropout(x, log_alpha, key=key) ** 2).sum()

        def penalty(logit):
            return concrete_dropout_penalty(x, logit, weight_scale=0.1, dropout_scale=0.2)

        for loss in (concrete, variational, penalty, lambda a: variational_dropout_kl(a).sum()):
            for at in (-2.0, 0.5):
                step = 1e-5
                slope = (loss(jnp.float64(at + step)) - loss(jnp.float64(at - step))) / (2 * step)
                grad = jax.grad(loss)
                got = (jax.jit(grad) if jit else grad)(jnp.float64(at))
                np.testing.assert_allclose(got, slope, rtol=1e-6)


def test_gradients_to_x_are_the_noise(key):
    x = jnp.asarray(sample(50))
    for op in (concrete_dropout, variational_dropout):
        gradient = jax.grad(lambda x: op(x, -1.0, key=key).sum())(x)  # noqa: B023
        np.testing.assert_allclose(gradient, op(jnp.ones(50), -1.0, key=key), rtol=1e-6)


def test_the_learned_ops_keep_no_mask(key):
    for op in (concrete_dropout, variational_dropout):
        x = jnp.ones((64, 64))
        _, pullback = jax.vjp(lambda x: op(x, -1.0, key=key), x)  # noqa: B023
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(pullback)) <= 64


def test_moments(key):
    """Variational: mean 1, variance alpha. Concrete: its integrals over u. |z| < 4.9, 1e6 draws."""
    n, one = 1_000_000, jnp.ones((1000, 1000))
    y = np.asarray(variational_dropout(one, np.log(0.25), key=key), np.float64)
    assert abs(y.mean() - 1) < 4.9 * 0.5 / np.sqrt(n)
    assert abs(y.var() - 0.25) < 4.9 * 0.25 * np.sqrt(2 / n)
    logit, temperature = special.logit(0.2), 0.1

    def factor(u):
        return special.expit(-(logit + special.logit(u)) / temperature) / 0.8

    mean = integrate.quad(factor, 0, 1, points=[0.8], limit=500)[0]
    second = integrate.quad(lambda u: factor(u) ** 2, 0, 1, points=[0.8], limit=500)[0]
    y = np.asarray(concrete_dropout(one, logit, key=key), np.float64)
    assert abs(y.mean() - mean) < 4.9 * np.sqrt((second - mean**2) / n)
    assert abs((y**2).mean() - second) < 4.9 * (y**2).std() / np.sqrt(n)


def test_concrete_dropout_is_dropout_as_the_temperature_falls(key):
    y = np.asarray(
        concrete_dropout(jnp.ones(10_000), special.logit(0.25), key=key, temperature=1e-4)
    )
    near = np.minimum(abs(y), abs(y - 4 / 3)) < 1e-3
    assert near.mean() > 0.995
    assert abs((y < 0.5).mean() - 0.25) < 4.9 * np.sqrt(0.25 * 0.75 / 10_000)


def test_penalty_is_the_oracles():
    weights = sample((6, 3))
    ours = concrete_dropout_penalty(weights, -0.5, weight_scale=0.3, dropout_scale=0.7)
    theirs = reference.concrete_dropout_penalty(weights, -0.5, weight_scale=0.3, dropout_scale=0.7)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    extreme = concrete_dropout_penalty(weights, -200.0, weight_scale=0.3, dropout_scale=0.7)
    assert jnp.isfinite(extreme)


def test_kl_is_the_oracles_and_near_the_integral():
    """-KL = 0.5 log alpha - E log|1 + sqrt(alpha) e| + C, with C such that KL is 0 at infinity."""
    grid = np.linspace(-8, 8, 33)
    ours = np.asarray(variational_dropout_kl(jnp.asarray(grid, jnp.float32)))
    np.testing.assert_allclose(ours, reference.variational_dropout_kl(grid), atol=1e-6)
    assert (ours >= 0).all()
    at_infinity = -0.5 * (np.log(2) + np.euler_gamma)  # E log|e|
    for log_alpha, kl in zip(grid, ours, strict=True):
        deviation = np.exp(log_alpha / 2)

        def integrand(e):
            return np.log(abs(1 + deviation * e)) * stats.norm.pdf(e)  # noqa: B023

        pole = -1 / deviation
        cuts = [p for p in (-10, -1, 0, 1, 10, pole) if -40 < p < 40]
        expected = integrate.quad(integrand, -40, 40, points=sorted(set(cuts)), limit=400)[0]
        exact = expected - 0.5 * log_alpha - at_infinity
        assert abs(kl - exact) < 0.01
