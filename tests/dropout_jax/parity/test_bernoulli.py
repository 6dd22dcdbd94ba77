"""JAX's bernoulli and the frameworks that call it, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropout_jax.parity import bernoulli

IMPLS = ("threefry2x32", "philox4x32")
RATES = st.floats(0, 1 - 2**-16) | st.just(1.0)
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@given(seed=st.integers(0, 2**31 - 1), rate=RATES, shape=SHAPES, impl=st.sampled_from(IMPLS))
def test_masks_are_jaxs(seed, rate, shape, impl):
    key = jax.random.key(seed, impl=impl)
    expected = jax.random.bernoulli(key, 1 - rate, shape)
    np.testing.assert_array_equal(bernoulli.keep_mask(key, rate, shape), expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("rate", [0.1, 0.3, 1 / 3, 0.5, 0.9, 0.0, 1.0])
def test_masks_under_x64_are_others_and_jaxs(impl, rate):
    key = jax.random.key(7, impl=impl)
    narrow = bernoulli.keep_mask(key, rate, (3, 100))
    with jax.enable_x64(True):
        wide = bernoulli.keep_mask(key, rate, (3, 100), dtype="float64")
        np.testing.assert_array_equal(wide, jax.random.bernoulli(key, 1 - rate, (3, 100)))
        single = jax.random.bernoulli(key, np.float32(1 - rate), (3, 100))
        np.testing.assert_array_equal(bernoulli.keep_mask(key, rate, (3, 100)), single)
    np.testing.assert_array_equal(narrow, single)
    assert rate in (0, 1) or (narrow != wide).any()


def test_traced_rates_and_many_keys():
    keys, rates = jax.random.split(jax.random.key(0), 5), jnp.linspace(0, 1, 5)
    ours = jax.vmap(lambda k, r: bernoulli.keep_mask(k, r, (64,)))(keys, rates)
    theirs = jax.vmap(lambda k, r: jax.random.bernoulli(k, 1 - r, (64,)))(keys, rates)
    np.testing.assert_array_equal(ours, theirs)


def test_flax_equinox_and_haiku_draw_it(key):
    """Each with the key that reaches its bernoulli: what their layers do with ones."""
    x = jnp.ones((4, 50))
    expected = bernoulli.keep_mask(key, 0.3, x.shape)
    nnx = pytest.importorskip("flax.nnx")
    layer = nnx.Dropout(0.3, deterministic=False)
    np.testing.assert_array_equal(layer(x, rngs=key) != 0, expected)
    equinox = pytest.importorskip("equinox")
    np.testing.assert_array_equal(equinox.nn.Dropout(0.3)(x, key=key) != 0, expected)
    haiku = pytest.importorskip("haiku")
    with jax.numpy_dtype_promotion("standard"):  # haiku multiplies by a bool
        np.testing.assert_array_equal(haiku.dropout(key, 0.3, x) != 0, expected)


def test_parity_fails_where_it_must(key):
    theirs = jax.random.bernoulli(key, 0.5, (100,))
    assert (bernoulli.keep_mask(jax.random.split(key)[0], 0.5, (100,)) != theirs).any()


@pytest.mark.usefixtures("without_type_checker")
def test_errors():
    with pytest.raises(NotImplementedError, match="rbg"):
        bernoulli.keep_mask(jax.random.key(0, impl="rbg"), 0.5, (3,))
    with pytest.raises(NotImplementedError, match="2\\^32"):
        bernoulli.keep_mask(jax.random.key(0), 0.5, (2**16, 2**16))
    with pytest.raises(TypeError, match="key=None"):
        bernoulli.keep_mask(None, 0.5, (3,))  # pyright: ignore[reportArgumentType]
