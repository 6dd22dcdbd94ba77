"""The noise against the oracle, its distribution, and its independence of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dropout_jax import reference
from dropout_jax.random import _noise as noise

SHAPES = [(), (5,), (3, 40), (2, 3, 4), (10, 1000)]


def words(key):
    return np.asarray(jax.random.key_data(key))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_noise_is_the_oracles(shape, key):
    """Uniform bit for bit; normal to 5e-5, by XLA's inverse error function in float32."""
    uniform = np.asarray(noise.draw_uniform(key, shape), np.float64)
    np.testing.assert_array_equal(uniform, reference.uniform_noise(words(key), shape))
    expected = reference.normal_noise(words(key), shape)
    np.testing.assert_allclose(noise.draw_normal(key, shape), expected, rtol=0, atol=5e-5)


@pytest.mark.slow
def test_noise_has_its_distribution(key):
    """Kolmogorov and Smirnov over 1e6 draws, p above that of |z| = 4.9."""
    limit = 2 * stats.norm.sf(4.9)
    shape = (1000, 1000)
    assert stats.kstest(np.ravel(noise.draw_uniform(key, shape)), "uniform").pvalue > limit
    normal = np.asarray(noise.draw_normal(key, shape), np.float64)
    assert stats.kstest(normal.ravel(), "norm").pvalue > limit
    for lag in (1, 2, 32):
        for a, b in ((normal[:, lag:], normal[:, :-lag]), (normal[lag:], normal[:-lag])):
            assert abs((a * b).mean() * np.sqrt(a.size)) < 4.9
    assert stats.kstest(1.01 * normal.ravel(), "norm").pvalue < limit  # the test can fail


def test_noise_is_the_same_sharded_and_in_a_vmap(key):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = jax.jit(lambda k: noise.draw_uniform(k, (8, 40)), out_shardings=sharding)(key)
    np.testing.assert_array_equal(spread, noise.draw_uniform(key, (8, 40)))
    keys = jax.random.split(key, 3)
    loop = jnp.stack([noise.draw_uniform(k, (4, 40)) for k in keys])
    np.testing.assert_array_equal(jax.vmap(lambda k: noise.draw_uniform(k, (4, 40)))(keys), loop)
