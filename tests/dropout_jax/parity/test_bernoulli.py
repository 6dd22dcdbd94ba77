"""JAX's bernoulli and the frameworks that call it, bit for bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropout_jax.parity import bernoulli

IMPLS = ("threefry2x32", "philox4x32")
RATES = st.floats(0, 1) | st.sampled_from([1 - 2.0**-n for n in (16, 17, 20, 24, 30, 53)])
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@given(seed=st.integers(0, 2**31 - 1), rate=RATES, shape=SHAPES, impl=st.sampled_from(IMPLS))
@pytest.mark.slow
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


@pytest.mark.parametrize("rate", [1 - 1e-6, 1 - 1e-10, 1e-9, 2**-25 + 2**-48, 0.3])
def test_rates_of_every_kind_are_jaxs(rate, key):
    """The rates that JAX resolves, as far as 2^-23, whatever holds the number."""
    shape = (2**18,)
    for kind in (float, np.float32, np.float64, jnp.float32):
        expected = jax.random.bernoulli(key, jnp.float32(1 - kind(rate)), shape)
        np.testing.assert_array_equal(bernoulli.keep_mask(key, kind(rate), shape), expected)
    np.testing.assert_array_equal(
        bernoulli.keep_mask(key, np.array(rate), (50,)), bernoulli.keep_mask(key, rate, (50,))
    )


@pytest.mark.parametrize("rate", [-0.5, -np.inf, 1.5, np.inf, np.nan, 1e-30])
def test_traced_rates_anywhere_are_jaxs(rate, key):
    ours = jax.jit(lambda r: bernoulli.keep_mask(key, r, (100,)))(rate)
    np.testing.assert_array_equal(ours, jax.random.bernoulli(key, 1 - jnp.float32(rate), (100,)))


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rate": -0.1}, ValueError, "rate=-0.1 is not allowed"),
        ({"rate": 1.5}, ValueError, "rate=1.5 is not allowed"),
        ({"rate": np.nan}, ValueError, "rate=nan is not allowed"),
        ({"rate": jnp.float32(2)}, ValueError, "rate=.*2.0.* is not allowed"),
        ({"rate": True}, TypeError, "rate=True is not allowed"),
        ({"rate": jnp.array(True)}, TypeError, "rate=.*True.* is not allowed"),
        ({"rate": "0.1"}, TypeError, "rate='0.1' is not allowed"),
        ({"rate": None}, TypeError, "rate=None is not allowed"),
        ({"rate": jnp.bfloat16(0.5)}, TypeError, r"rate=.*jnp\.float32\(rate\)"),
        ({"rate": np.float16(0.5)}, TypeError, r"rate=.*jnp\.float32\(rate\)"),
        ({"rate": np.array([0.5])}, TypeError, "rate=array.* is not allowed"),
        ({"shape": (-1,)}, ValueError, r"shape=\(-1,\) is not allowed"),
        ({"shape": (1.5,)}, TypeError, r"shape=\(1.5,\) is not allowed"),
        ({"shape": 3}, TypeError, "shape=3 is not allowed"),
        ({"key": 0}, TypeError, "key=0 is not allowed"),
        ({"key": jax.random.split(jax.random.key(0))}, ValueError, "key.shape"),
        ({"dtype": "float16"}, ValueError, "dtype='float16' is not allowed"),
        ({"dtype": "float64", "rate": jnp.float32(0.1)}, TypeError, r"Pass float\(rate\)"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    given: dict[str, Any] = {"key": jax.random.key(0), "rate": 0.5, "shape": (3,)}
    with pytest.raises(error, match=message):
        bernoulli.keep_mask(**(given | arguments))


def test_another_way_of_counting_is_refused(key):
    with jax.threefry_partitionable(False):
        with pytest.raises(NotImplementedError, match="jax_threefry_partitionable=False"):
            bernoulli.keep_mask(key, 0.5, (3,))
        philox = jax.random.key(0, impl="philox4x32")
        expected = jax.random.bernoulli(philox, 0.5, (99,))
        np.testing.assert_array_equal(bernoulli.keep_mask(philox, 0.5, (99,)), expected)


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
