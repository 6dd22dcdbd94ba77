"""dropout_jax.linen: each layer is its function, with the conventions of flax.linen."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import dropout_jax
from dropout_jax import linen as layers

X = jnp.ones((8, 40, 4))
RNGS = {"dropout": jax.random.key(3)}
INIT = {"params": jax.random.key(0), **RNGS}
LAYERS = {
    "Dropout": ({"broadcast_dims": (1,)}, "dropout"),
    "DropoutUnscaled": ({}, "dropout_unscaled"),
    "AlphaDropout": ({}, "alpha_dropout"),
    "GaussianDropout": ({}, "gaussian_dropout"),
    "DropConnect": ({}, "drop_connect"),
    "EmbeddingDropout": ({}, "embedding_dropout"),
    "SpatialDropout": ({"channel_axis": 1}, "spatial_dropout"),
    "LockedDropout": ({"time_axis": 1}, "locked_dropout"),
    "TokenDropout": ({"time_axis": 1}, "token_dropout"),
    "HeadDropout": ({"head_axis": 1}, "head_dropout"),
    "DropBlock": ({"block_size": 3, "broadcast_dims": (-1,)}, "drop_block"),
    "DropPath": ({"mode": "batch", "scale": False}, "drop_path"),
}


def apply(layer, variables, *args, **options) -> Any:
    """`layer.apply`, whose type is wider than an array."""
    return layer.apply(variables, *args, **options)


def key_of(layer, name="dropout"):
    """The key that linen gives a module."""

    class Reader(linen.Module):
        @linen.compact
        def __call__(self):
            return self.make_rng(name)

    return apply(Reader(), {}, rngs={name: layer})


def test_arguments_are_linens():
    assert layers.Dropout(0.5, (0,), True, "noise") == layers.Dropout(
        rate=0.5, broadcast_dims=(0,), deterministic=True, rng_collection="noise"
    )
    ours, theirs = (
        inspect.signature(cls.__call__).parameters for cls in (layers.Dropout, linen.Dropout)
    )
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_is_its_function(name):
    options, function = LAYERS[name]
    layer, op = getattr(layers, name)(0.3, **options), getattr(dropout_jax, function)
    expected = op(X, 0.3, key=key_of(RNGS["dropout"]), **options)
    y = apply(layer, {}, X, deterministic=False, rngs=RNGS)
    np.testing.assert_array_equal(y, expected)
    key = jax.random.key(9)
    y = apply(layer, {}, X, deterministic=False, rng=key)
    np.testing.assert_array_equal(y, op(X, 0.3, key=key, **options))
    evaluated = apply(layer.clone(deterministic=True), {}, X)
    np.testing.assert_array_equal(evaluated, op(X, 0.3, key=None, **options))


def test_every_op_has_a_layer():
    from dropout_jax import nn

    public = {name for name, value in vars(nn).items() if inspect.isclass(value)}
    bases = {"Stochastic", "RateLayer", "Layer"}
    for name in public - bases:
        if getattr(nn, name).__module__ == nn.__name__:
            assert hasattr(layers, name), name


def test_layers_of_two_inputs():
    key = key_of(RNGS["dropout"])
    y = apply(layers.Zoneout(0.3, deterministic=False), {}, X, X * 0, rngs=RNGS)
    np.testing.assert_array_equal(y, dropout_jax.zoneout(X, X * 0, 0.3, key=key))
    where = jnp.arange(4) < 2
    y = apply(layers.MaskedDropout(0.3, deterministic=False), {}, X, where, rngs=RNGS)
    np.testing.assert_array_equal(y, dropout_jax.masked_dropout(X, 0.3, where, key=key))


@pytest.mark.parametrize("layer", [layers.ConcreteDropout(0.2), layers.VariationalDropout((4,))])
def test_learned_layers_have_one_parameter_with_a_gradient(layer):
    variables = layer.init(INIT, X, deterministic=True)

    def loss(variables):
        return (apply(layer, variables, X, deterministic=False, rngs=RNGS) ** 2).sum()

    (slope,) = jax.tree.leaves(jax.grad(loss)(variables))
    assert jnp.isfinite(slope).all()
    assert (slope != 0).all()
    np.testing.assert_array_equal(apply(layer, variables, X, deterministic=True), X)


def test_penalties_of_learned_layers():
    concrete = layers.ConcreteDropout(0.2)
    variables: Any = concrete.init(INIT, X, deterministic=True)
    scales: dict[str, Any] = {"weight_scale": 0.1, "dropout_scale": 0.3}
    penalty = apply(concrete, variables, X, method="penalty", **scales)
    logit = variables["params"]["rate_logit"]
    expected = dropout_jax.concrete_dropout_penalty(X, logit, **scales)
    np.testing.assert_array_equal(penalty, expected)
    variational = layers.VariationalDropout((4,), log_alpha_init=-1.0)
    variables = variational.init(INIT, X, deterministic=True)
    kl = apply(variational, variables, method="kl")
    assert kl == pytest.approx(4 * float(dropout_jax.variational_dropout_kl(-1.0)))


class Model(linen.Module):
    """Two layers in a scan with remat: each has its own mask."""

    @linen.compact
    def __call__(self, x):
        def body(layer, x, _):
            return layer(x), None

        scan = linen.scan(
            body, variable_axes={}, split_rngs={"params": False, "dropout": True}, length=3
        )
        y, _ = scan(linen.remat(layers.Dropout)(0.5, deterministic=False), x, None)
        return y


def test_in_scan_with_remat_each_layer_has_its_mask():
    y = np.asarray(apply(Model(), {}, jnp.ones((1000,)), rngs=RNGS))
    assert set(np.unique(y)) == {0, 8}
    assert abs((y > 0).mean() - 1 / 8) < 4.9 * (1 / 8 * 7 / 8 / 1000) ** 0.5


def test_rates_of_0_and_1_need_no_key():
    np.testing.assert_array_equal(apply(layers.Dropout(0.0), {}, X, deterministic=False), X)
    np.testing.assert_array_equal(apply(layers.Dropout(1.0), {}, X, deterministic=False), X * 0)


def test_missing_arguments_are_errors_with_a_remedy():
    with pytest.raises(ValueError, match="must be passed to the constructor or at call time"):
        apply(layers.Dropout(0.5), {}, X)
    with pytest.raises(ValueError, match=r"Pass rngs=.'dropout': jax\.random\.key"):
        apply(layers.DropPath(0.5, deterministic=False), {}, X)
    with pytest.raises(ValueError, match='"deterministic" was passed to the constructor and'):
        apply(layers.Dropout(0.5, deterministic=True), {}, X, deterministic=True)
    with pytest.raises(ValueError, match=r"in \(0, 1\)"):
        layers.ConcreteDropout(1.0).init(INIT, X, deterministic=True)
