"""Masks predicted from what the user of a framework holds, against the framework."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropout_jax.parity import bernoulli, keys

X = jnp.ones((4, 50))
RATE = 0.3


def mask(key):
    return bernoulli.keep_mask(key, RATE, X.shape)


def test_linen(key):
    linen = pytest.importorskip("flax.linen")

    class Inner(linen.Module):
        @linen.compact
        def __call__(self, x):
            drop = linen.Dropout(RATE, deterministic=False)
            return drop(x), drop(x)

    class Outer(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dropout(RATE, deterministic=False)(x), *Inner(name="block")(x)

    with jax.numpy_dtype_promotion("standard"):
        first, second, third = Outer().apply({}, X, rngs={"dropout": key})
        alone = linen.Dropout(RATE, deterministic=False).apply({}, X, rngs={"dropout": key})
    np.testing.assert_array_equal(first != 0, mask(keys.linen(key, ("Dropout_0",))))
    np.testing.assert_array_equal(second != 0, mask(keys.linen(key, ("block", "Dropout_0"))))
    np.testing.assert_array_equal(third != 0, mask(keys.linen(key, ("block", "Dropout_0"), 2)))
    np.testing.assert_array_equal(alone != 0, mask(keys.linen(key, ())))


def test_nnx():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(dropout=5)
    layer = nnx.Dropout(RATE, deterministic=False, rngs=rngs)  # forks: draws number 0
    passed = nnx.Dropout(RATE, deterministic=False)
    root = jax.random.key(5)
    for call in range(3):
        np.testing.assert_array_equal(layer(X) != 0, mask(keys.nnx(keys.nnx(root, 0), call)))
        np.testing.assert_array_equal(passed(X, rngs=rngs) != 0, mask(keys.nnx(root, call + 1)))


def test_haiku(key):
    haiku = pytest.importorskip("haiku")

    def model(x):
        return [haiku.dropout(haiku.next_rng_key(), RATE, x) for _ in range(3)]

    transformed = haiku.transform(model)
    with jax.numpy_dtype_promotion("standard"):
        for call, y in enumerate(transformed.apply({}, key, X), 1):
            np.testing.assert_array_equal(y != 0, mask(keys.haiku(key, call)))
    with pytest.raises(ValueError, match="call=0"):
        keys.haiku(key, 0)


@pytest.mark.filterwarnings("ignore")
def test_keras(monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("keras was imported with another backend")
    layer = keras.layers.Dropout(RATE, seed=7)
    with jax.numpy_dtype_promotion("standard"):
        for call in range(3):
            y = np.asarray(layer(np.ones(X.shape, np.float32), training=True))
            np.testing.assert_array_equal(y != 0, mask(keys.keras(7, call)))


def test_parity_fails_where_it_must(key):
    right = mask(keys.linen(key, ("Dropout_0",)))
    for wrong in (keys.linen(key, ("Dropout_1",)), keys.linen(key, ("Dropout_0",), 2)):
        assert (mask(wrong) != right).any()
