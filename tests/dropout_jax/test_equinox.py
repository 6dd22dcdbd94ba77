"""dropout_jax.equinox: each layer is its function, with the conventions of Equinox."""

import inspect
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropout_jax
from dropout_jax import equinox as layers

X = jnp.ones((8, 40, 4))
LAYERS = {
    "Dropout": ({"broadcast_dims": (1,)}, lambda x, **k: dropout_jax.dropout(x, 0.3, **k)),
    "DropoutUnscaled": ({}, lambda x, **k: dropout_jax.dropout_unscaled(x, 0.3, **k)),
    "AlphaDropout": (
        {"broadcast_dims": (0,)},
        lambda x, **k: dropout_jax.alpha_dropout(x, 0.3, **k),
    ),
    "GaussianDropout": ({}, lambda x, **k: dropout_jax.gaussian_dropout(x, 0.3, **k)),
    "DropConnect": ({}, lambda x, **k: dropout_jax.drop_connect(x, 0.3, **k)),
    "EmbeddingDropout": ({}, lambda x, **k: dropout_jax.embedding_dropout(x, 0.3, **k)),
    "SpatialDropout": (
        {"channel_axis": 1},
        lambda x, **k: dropout_jax.spatial_dropout(x, 0.3, batch_axis=None, **k),
    ),
    "LockedDropout": ({"time_axis": 1}, lambda x, **k: dropout_jax.locked_dropout(x, 0.3, **k)),
    "TokenDropout": ({"time_axis": 1}, lambda x, **k: dropout_jax.token_dropout(x, 0.3, **k)),
    "HeadDropout": (
        {"head_axis": 1},
        lambda x, key, head_axis: dropout_jax.head_dropout(
            x[None], 0.3, key=key, head_axis=head_axis + 1
        )[0],
    ),
    "DropBlock": (
        {"block_size": 3},
        lambda x, key, block_size: dropout_jax.drop_block(x[None], 0.3, block_size, key=key)[0],
    ),
    "DropPath": (
        {"scale": False},
        lambda x, **k: dropout_jax.drop_path(x, 0.3, mode="batch", **k),
    ),
}


def test_arguments_of_dropout_are_equinoxs():
    for method in ("__init__", "__call__"):
        theirs = inspect.signature(getattr(equinox.nn.Dropout, method)).parameters
        ours = inspect.signature(getattr(layers.Dropout, method)).parameters
        assert [name for name in ours if name != "broadcast_dims"] == list(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_is_its_function(name, key):
    options, op = LAYERS[name]
    layer = getattr(layers, name)(0.3, **options)
    np.testing.assert_array_equal(layer(X, key=key), op(X, key=key, **options))
    evaluated = op(X, key=None, **options)
    np.testing.assert_array_equal(equinox.nn.inference_mode(layer)(X), evaluated)
    np.testing.assert_array_equal(layer(X, inference=True), evaluated)
    switched_on = equinox.nn.inference_mode(layer)(X, key=key, inference=False)
    np.testing.assert_array_equal(switched_on, layer(X, key=key))


def test_every_op_has_a_layer():
    from dropout_jax import nn

    public = {name for name, value in vars(nn).items() if inspect.isclass(value)}
    bases = {"Stochastic", "RateLayer", "Layer"}
    for name in public - bases:
        if getattr(nn, name).__module__ == nn.__name__:
            assert hasattr(layers, name), name


def test_layers_of_two_inputs(key):
    y = layers.Zoneout(0.3)(X, X * 0, key=key)
    np.testing.assert_array_equal(y, dropout_jax.zoneout(X, X * 0, 0.3, key=key))
    where = jnp.arange(4) < 2
    y = layers.MaskedDropout(0.3)(X, where, key=key)
    np.testing.assert_array_equal(y, dropout_jax.masked_dropout(X, 0.3, where, key=key))


@pytest.mark.parametrize("layer", [layers.ConcreteDropout(0.2), layers.VariationalDropout((4,))])
def test_learned_layers_have_one_parameter_with_a_gradient(layer, key):
    slopes = equinox.filter_grad(lambda layer: (layer(X, key=key) ** 2).sum())(layer)
    (slope,) = jax.tree.leaves(slopes)
    assert jnp.isfinite(slope).all()
    assert (slope != 0).all()
    np.testing.assert_array_equal(equinox.nn.inference_mode(layer)(X), X)


def test_penalties_of_learned_layers():
    concrete = layers.ConcreteDropout(0.2)
    scales: dict[str, Any] = {"weight_scale": 0.1, "dropout_scale": 0.3}
    expected = dropout_jax.concrete_dropout_penalty(X, concrete.rate_logit, **scales)
    np.testing.assert_array_equal(concrete.penalty(X, **scales), expected)
    kl = layers.VariationalDropout((4,), log_alpha=-1.0).kl()
    assert kl == pytest.approx(4 * float(dropout_jax.variational_dropout_kl(-1.0)))


class Model(equinox.Module):
    """A linear layer and dropout, of one example."""

    linear: equinox.nn.Linear
    drop: layers.Dropout

    def __call__(self, x, key=None):
        return self.drop(self.linear(x), key=key)


def test_model_in_filter_jit_vmap_and_inference_mode(key):
    model = Model(equinox.nn.Linear(16, 16, key=key), layers.Dropout(0.5))
    x, keys = jnp.ones((5, 16)), jax.random.split(key, 5)
    call = equinox.filter_jit(lambda model, x, keys: jax.vmap(model)(x, keys))
    expected = [model(row, key=one) for row, one in zip(x, keys, strict=True)]
    np.testing.assert_allclose(call(model, x, keys), jnp.stack(expected), rtol=1e-6)
    evaluated = jax.vmap(equinox.nn.inference_mode(model))(x)
    np.testing.assert_allclose(evaluated, jax.vmap(model.linear)(x), rtol=1e-6)


def test_rate_may_be_changed_and_is_checked(key):
    layer = equinox.tree_at(lambda layer: layer.p, layers.Dropout(0.5), 0.1)
    np.testing.assert_array_equal(layer(X, key=key), dropout_jax.dropout(X, 0.1, key=key))
    with pytest.raises(ValueError, match=r"p=1\.5 is not allowed"):
        layers.Dropout(1.5)
    with pytest.raises(ValueError, match=r"in \(0, 1\)"):
        layers.ConcreteDropout(1.0)


def test_missing_key_is_an_error_in_equinoxs_words():
    sentence = "requires a key when running in non-deterministic mode"
    for layer in (layers.Dropout(0.5), layers.DropPath(0.5), layers.ConcreteDropout()):
        with pytest.raises(RuntimeError, match=sentence):
            layer(X)
    with pytest.raises(RuntimeError, match=sentence):
        equinox.nn.Dropout(0.5)(X)
    np.testing.assert_array_equal(layers.Dropout(0.0)(X), X)
