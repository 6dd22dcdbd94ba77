"""dropout_jax.nn.Dropout as a drop-in for flax.nnx.Dropout."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dropout_jax
from dropout_jax.nn import Dropout

X = jnp.ones((4, 50))


def parameters(fn):
    return [(p.name, p.kind, p.default) for p in inspect.signature(fn).parameters.values()]


def test_arguments_are_flaxs():
    assert parameters(Dropout.__init__) == parameters(nnx.Dropout.__init__)
    assert parameters(Dropout.__call__) == parameters(nnx.Dropout.__call__)


@pytest.mark.parametrize("make", [nnx.Rngs, lambda seed: nnx.Rngs(dropout=seed)])
def test_takes_the_keys_that_flax_takes(make):
    """Call by call, the mask is keep_mask of the key that flax.nnx.Dropout would have used."""
    layer, stream = Dropout(0.3, rngs=make(0)), make(0)["dropout"].fork()
    for _ in range(3):
        np.testing.assert_array_equal(layer(X), dropout_jax.dropout(X, 0.3, key=stream()))


def test_rngs_at_the_call_take_precedence():
    layer = Dropout(0.3, rngs=nnx.Rngs(0))
    key = jax.random.key(5)
    expected = dropout_jax.dropout(X, 0.3, key=key)
    np.testing.assert_array_equal(layer(X, rngs=key), expected)
    rngs = nnx.Rngs(dropout=5)
    expected = dropout_jax.dropout(X, 0.3, key=nnx.Rngs(dropout=5).dropout())
    np.testing.assert_array_equal(layer(X, rngs=rngs), expected)
    np.testing.assert_array_equal(layer(X, rngs=nnx.Rngs(dropout=5).dropout), expected)
    raw = jax.random.key_data(key)
    np.testing.assert_array_equal(layer(X, rngs=raw), layer(X, rngs=key))


def test_stored_stream_is_a_fork():
    rngs, twin = nnx.Rngs(0), nnx.Rngs(0)
    Dropout(0.3, rngs=rngs)(X)
    twin.dropout.fork()
    assert (
        jax.random.key_data(rngs.dropout()).tolist() == jax.random.key_data(twin.dropout()).tolist()
    )


def test_other_collection_and_broadcast_dims():
    layer = Dropout(0.5, broadcast_dims=[0], rng_collection="noise", rngs=nnx.Rngs(noise=1))
    y = np.asarray(layer(X))
    assert (y == y[:1]).all()
    assert 0 < (y == 0).mean() < 1


def test_train_eval_and_view_switch_it():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dropout = Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(x)

    net = Net(nnx.Rngs(0))
    net.eval()
    np.testing.assert_array_equal(net(X), X)
    net.train()
    assert (net(X) == 0).any()
    view = nnx.view(net, deterministic=True)
    np.testing.assert_array_equal(view(X), X)
    assert (net(X) == 0).any()


def test_deterministic_needs_no_key_and_neither_does_rate_zero():
    np.testing.assert_array_equal(Dropout(0.5)(X, deterministic=True), X)
    np.testing.assert_array_equal(Dropout(0.0)(X), X)


def test_missing_arguments_are_errors():
    with pytest.raises(ValueError, match="rngs=None is not allowed"):
        Dropout(0.5)(X)
    with pytest.raises(ValueError, match="deterministic=None is not allowed"):
        Dropout(0.5, deterministic=None)(X)
    with pytest.raises(TypeError, match="rngs='x' is not allowed"):
        Dropout(0.5, rngs="x")
    with pytest.raises(TypeError, match="key='x' is not allowed"):
        Dropout(0.5)(X, rngs="x")


def test_split_merge_and_jit_advance_the_stream():
    layer = Dropout(0.5, rngs=nnx.Rngs(0))
    twin = nnx.merge(*nnx.split(nnx.clone(layer)))
    step = nnx.jit(lambda layer, x: layer(x))
    first, second = step(layer, X), step(layer, X)
    assert (first != second).any()
    np.testing.assert_array_equal(twin(X), first)
