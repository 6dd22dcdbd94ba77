"""dropout_jax.nn.Dropout as a drop-in for flax.nnx.Dropout."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, nnx

import dropout_jax
from dropout_jax import nn as layers
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


def test_rate_one_needs_no_key_and_draws_none_as_in_flax():
    np.testing.assert_array_equal(Dropout(1.0)(X), nnx.Dropout(1.0)(X))
    counts = []
    for layer in (Dropout(1.0), nnx.Dropout(1.0)):
        rngs = nnx.Rngs(dropout=0)
        layer(X, rngs=rngs)
        counts.append(int(rngs.dropout.count[...]))
    assert counts == [0, 0]


class Mixed(nnx.Module):
    """Flax's layer and all of ours."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Dropout(0.5, rngs=rngs)])
        for make, options, _ in LAYERS.values():
            self.layers.append(make(0.5, **options, rngs=rngs))
        for make in (layers.Zoneout, layers.MaskedDropout, layers.ConcreteDropout):
            self.layers.append(make(0.5, rngs=rngs))
        self.layers.append(layers.VariationalDropout(rngs=rngs))
        self.layers.append(layers.MultiHeadAttention(2, 4, dropout_rate=0.5, rngs=rngs))
        self.layers.append(layers.TransformerBlock(4, 2, rates=0.5, rngs=rngs))
        for make in (layers.Encoder, layers.Decoder):
            self.layers.append(make(1, 4, 2, rates=0.5, rngs=rngs))
        self.norm = nnx.BatchNorm(4, rngs=rngs)


def switches(model):
    return {layer.deterministic for layer in model.layers}


def test_every_filter_for_flaxs_dropout_finds_every_layer():
    model = Mixed(nnx.Rngs(0))
    public = {
        layer
        for layer in vars(layers).values()
        if isinstance(layer, type) and issubclass(layer, layers.Stochastic)
    }
    bases = {layers.Stochastic, layers.RateLayer, layers.Layer}
    assert public - bases == {type(layer) for layer in model.layers} - {nnx.Dropout}
    assert switches(nnx.view(model, only=nnx.Dropout, deterministic=True)) == {True}
    assert switches(model) == {False}
    model.set_attributes(nnx.Dropout, deterministic=True)
    assert switches(model) == {True}
    model.train()
    assert switches(model) == {False}
    model.set_attributes(nnx.OfType(nnx.Dropout), deterministic=True)
    assert switches(model) == {True}
    assert not model.norm.use_running_average
    assert all(type(layer).set_view is nnx.Dropout.set_view for layer in model.layers)


def test_a_layer_is_found_by_its_own_class_and_base():
    model = Mixed(nnx.Rngs(0))
    model.set_attributes(layers.DropPath, deterministic=True)
    assert {type(layer) for layer in model.layers if layer.deterministic} == {layers.DropPath}
    model.set_attributes(layers.Stochastic, deterministic=True)
    assert [type(layer) for layer in model.layers if not layer.deterministic] == [nnx.Dropout]
    model.set_attributes(layers.RateLayer, rate=0.25)
    assert all(layer.rate == 0.25 for layer in model.layers if isinstance(layer, layers.RateLayer))


def test_messages_have_flaxs_sentences():
    for deterministic in (False, None):
        messages = []
        for make in (Dropout, nnx.Dropout):
            with pytest.raises(ValueError, match="argument was provided to Dropout") as raised:
                make(0.5, deterministic=deterministic)(X)
            messages.append(str(raised.value))
        ours, theirs = messages
        assert theirs.partition(" as either")[0].partition("\n")[0].strip() in ours
    with pytest.raises(ValueError, match="argument was provided to DropPath"):
        layers.DropPath(0.5)(X)


@pytest.mark.usefixtures("without_type_checker")
def test_missing_arguments_are_errors():
    with pytest.raises(ValueError, match="rngs=None is not allowed"):
        Dropout(0.5)(X)
    with pytest.raises(ValueError, match="deterministic=None is not allowed"):
        Dropout(0.5, deterministic=None)(X)
    with pytest.raises(TypeError, match=r"rngs='x' is not allowed.*Rngs, RngStream or None"):
        Dropout(0.5, rngs="x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"key='x' is not allowed.*Rngs, RngStream or jax.Array"):
        Dropout(0.5)(X, rngs="x")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("transform", [jax.jit, jax.grad])
def test_stream_of_another_trace_is_an_error_with_a_remedy(transform):
    layer = Dropout(0.5, rngs=nnx.Rngs(0))
    with pytest.raises(errors.TraceContextError, match="Pass the model as an argument"):
        transform(lambda x: layer(x).sum())(X)
    assert nnx.jit(lambda layer, x: layer(x).sum())(layer, X) > 0
    assert transform(lambda x: layer(x, rngs=jax.random.key(1)).sum())(X).shape in ((), X.shape)


def test_split_merge_and_jit_advance_the_stream():
    layer = Dropout(0.5, rngs=nnx.Rngs(0))
    twin = nnx.merge(*nnx.split(nnx.clone(layer)))
    step = nnx.jit(lambda layer, x: layer(x))
    first, second = step(layer, X), step(layer, X)
    assert (first != second).any()
    np.testing.assert_array_equal(twin(X), first)


LAYERS = {
    "Dropout": (Dropout, {}, "dropout"),
    "DropoutUnscaled": (layers.DropoutUnscaled, {}, "dropout_unscaled"),
    "AlphaDropout": (layers.AlphaDropout, {"broadcast_dims": (1,)}, "alpha_dropout"),
    "GaussianDropout": (layers.GaussianDropout, {}, "gaussian_dropout"),
    "DropConnect": (layers.DropConnect, {}, "drop_connect"),
    "EmbeddingDropout": (layers.EmbeddingDropout, {}, "embedding_dropout"),
    "SpatialDropout": (layers.SpatialDropout, {"channel_axis": 1}, "spatial_dropout"),
    "LockedDropout": (layers.LockedDropout, {"time_axis": 1}, "locked_dropout"),
    "TokenDropout": (layers.TokenDropout, {"time_axis": 1}, "token_dropout"),
    "HeadDropout": (layers.HeadDropout, {"head_axis": 1}, "head_dropout"),
    "DropBlock": (
        layers.DropBlock,
        {"block_size": 3, "scale_by_keep": False},
        "drop_block",
    ),
    "DropPath": (layers.DropPath, {"mode": "batch", "scale": False}, "drop_path"),
}
OPTIONS_IN_ORDER = {"drop_block": ("block_size",)}
IMAGE = jnp.ones((8, 40, 4))


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_is_its_function(name):
    make, options, function = LAYERS[name]
    stream = nnx.Rngs(0).dropout.fork()
    layer = make(0.3, **options, rngs=nnx.Rngs(0))
    ordered = [options[word] for word in OPTIONS_IN_ORDER.get(function, ())]
    named = {k: v for k, v in options.items() if k not in OPTIONS_IN_ORDER.get(function, ())}
    op = getattr(dropout_jax, function)
    outputs = []
    for _ in range(4):
        outputs.append(layer(IMAGE))
        np.testing.assert_array_equal(outputs[-1], op(IMAGE, 0.3, *ordered, key=stream(), **named))
    assert any((outputs[0] != other).any() for other in outputs[1:])
    layer.eval()
    np.testing.assert_array_equal(layer(IMAGE), op(IMAGE, 0.3, *ordered, key=None, **named))


def test_layers_of_two_inputs():
    new, old, where = X, X * 0, np.arange(50) < 25
    np.testing.assert_array_equal(
        layers.Zoneout(0.3, rngs=nnx.Rngs(0))(new, old),
        dropout_jax.zoneout(new, old, 0.3, key=nnx.Rngs(0).dropout.fork()()),
    )
    np.testing.assert_array_equal(
        layers.MaskedDropout(0.3, rngs=nnx.Rngs(0))(new, where),
        dropout_jax.masked_dropout(new, 0.3, where, key=nnx.Rngs(0).dropout.fork()()),
    )


def test_token_layer_replaces_ids():
    ids = jnp.arange(1, 100)
    y = layers.TokenDropout(0.5, fill=0, rngs=nnx.Rngs(0))(ids)
    assert set(np.unique(y == ids)) == {False, True}


@pytest.mark.parametrize("make", [layers.ConcreteDropout, layers.VariationalDropout])
def test_learned_layers_have_one_parameter_with_a_gradient(make):
    layer = make(rngs=nnx.Rngs(0))
    grads = nnx.grad(lambda layer: (layer(X) ** 2).sum())(layer)
    (leaf,) = jax.tree.leaves(grads)
    assert jnp.isfinite(leaf)
    assert leaf != 0
    layer.eval()
    np.testing.assert_array_equal(layer(X), X)


def test_learned_layers_penalties():
    concrete = layers.ConcreteDropout(0.2, rngs=nnx.Rngs(0))
    scales: dict[str, Any] = {"weight_scale": 0.1, "dropout_scale": 0.3}
    expected = dropout_jax.concrete_dropout_penalty(X, concrete.rate_logit[...], **scales)
    np.testing.assert_array_equal(concrete.penalty(X, **scales), expected)
    assert jax.nn.sigmoid(concrete.rate_logit[...]) == pytest.approx(0.2)
    variational = layers.VariationalDropout((50,), log_alpha=-1.0, rngs=nnx.Rngs(0))
    assert variational(X).shape == X.shape
    assert variational.kl() == pytest.approx(50 * float(dropout_jax.variational_dropout_kl(-1.0)))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(50, 50, rngs=rngs)
        self.dropout = Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.linear(x))


def test_vmap_over_split_streams_gives_each_its_mask():
    """Flax's way of an ensemble: one stream a member."""
    streams = nnx.Rngs(0).split(5)

    @nnx.vmap(in_axes=(0, None))
    def apply(rngs, x):
        return Dropout(0.5)(x, rngs=rngs)

    masks = np.asarray(apply(streams, X)) == 0
    assert all((masks[0] != other).any() for other in masks[1:])


def test_scan_draws_a_new_mask_each_step():
    layer = Dropout(0.5, rngs=nnx.Rngs(0))

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def step(layer, x):
        return layer, layer(x)

    _, outputs = step(layer, jnp.ones((6, 50)))
    masks = np.asarray(outputs) == 0
    assert all((masks[0] != other).any() for other in masks[1:])


def test_remat_gives_the_same_output_and_gradient():
    def loss(net, x, remat):
        call = nnx.remat(lambda net, x: net(x)) if remat else lambda net, x: net(x)
        return (call(net, x) ** 2).sum()

    runs = []
    for remat in (False, True):
        net = Net(nnx.Rngs(0))
        value, grads = nnx.value_and_grad(loss)(net, X, remat)
        runs.append((value, *jax.tree.leaves(grads)))
    for one, other in zip(*runs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_gradient_step_updates_parameters_and_advances_the_stream():
    net = Net(nnx.Rngs(0))
    first = net(X)
    nnx.grad(lambda net: net(X).sum())(net)
    assert (net(X) != first).any()
