"""Masks predicted from what the user of a framework holds, against the framework."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropout_jax.parity import bernoulli, keys

X = jnp.ones((4, 50))
RATE = 0.3
untyped: Any = keys  # for arguments that the annotations forbid


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


def test_traced_counts_and_raw_keys():
    key, raw = jax.random.key(3), jax.random.PRNGKey(3)
    traced = jax.jit(keys.nnx)(key, jnp.uint8(200))
    assert traced == keys.nnx(key, 200)
    np.testing.assert_array_equal(keys.nnx(raw, 200), jax.random.key_data(traced))
    np.testing.assert_array_equal(keys.haiku(raw, 2), jax.random.key_data(keys.haiku(key, 2)))
    np.testing.assert_array_equal(jax.jit(keys.keras)(2**31 - 1, 3), keys.keras(2**31 - 1, 3))
    np.testing.assert_array_equal(keys.keras(2**32 - 1, 0), [2**32 - 1, 0])


def test_many_calls_of_haiku(key):
    last = sub = key
    for _ in range(1000):
        last, sub = jax.random.split(last)
    assert keys.haiku(key, 1000) == sub


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: untyped.linen(k, "Dropout_0"), TypeError, "path='Dropout_0' is not allowed"),
        (lambda k: untyped.linen(k, (0,)), TypeError, r"path=\(0,\) is not allowed"),
        (lambda k: untyped.linen(k, (), 0), ValueError, "call=0 is not allowed"),
        (lambda k: untyped.linen(k, (), -1), ValueError, "call=-1 is not allowed"),
        (lambda k: untyped.linen(k, (), 1.0), TypeError, "call=1.0 is not allowed"),
        (lambda k: untyped.linen(None, ()), TypeError, "key=None is not allowed"),
        (lambda k: untyped.linen(0, ()), TypeError, "key=0 is not allowed"),
        (lambda k: untyped.nnx(k, -1), ValueError, "count=-1 is not allowed"),
        (lambda k: untyped.nnx(k, 2**32), ValueError, "count=4294967296 is not allowed"),
        (lambda k: untyped.nnx(k, True), TypeError, "count=True is not allowed"),
        (lambda k: untyped.nnx(k, 1.5), TypeError, "count=1.5 is not allowed"),
        (lambda k: untyped.nnx(k, jnp.int32(-1)), ValueError, "count=.*-1.* is not allowed"),
        (lambda k: jax.jit(untyped.nnx)(k, 1.5), TypeError, "count=.* is not allowed"),
        (lambda k: untyped.nnx(jax.random.split(k), 0), ValueError, "key.shape"),
        (lambda k: untyped.nnx(7, 0), TypeError, "key=7 is not allowed"),
        (lambda k: untyped.haiku(k, 2.0), TypeError, "call=2.0 is not allowed"),
        (lambda k: untyped.haiku(k, True), TypeError, "call=True is not allowed"),
        (lambda k: untyped.haiku(k, 2**31), ValueError, "call=2147483648 is not allowed"),
        (lambda k: untyped.haiku(None), TypeError, "key=None is not allowed"),
        (lambda k: untyped.keras(-1), ValueError, "seed=-1 is not allowed"),
        (lambda k: untyped.keras(2**32), ValueError, "seed=4294967296 is not allowed"),
        (lambda k: untyped.keras(1.5), TypeError, "seed=1.5 is not allowed"),
        (lambda k: untyped.keras(1, -1), ValueError, "call=-1 is not allowed"),
        (lambda k: untyped.keras(1, True), TypeError, "call=True is not allowed"),
    ],
)
def test_wrong_arguments_are_named(call, error, message, key):
    with pytest.raises(error, match=message):
        call(key)
