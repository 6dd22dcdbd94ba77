"""`attention_fn` in the layers of Flax: what they compute, with this package's dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from dropout_jax import dot_product_attention
from dropout_jax.nn import attention_fn

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 70, 16)), jnp.float32)
QUERY, KEY, VALUE = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 70, 4, 8)), jnp.float32)


def nnx_layer(**options):
    return nnx.MultiHeadAttention(4, 16, decode=False, rngs=nnx.Rngs(0), **options)


def test_nnx_layer_evaluates_as_with_its_own_function():
    expected = nnx_layer(dropout_rate=0.3)(X, deterministic=True)
    y = nnx_layer(dropout_rate=0.3, attention_fn=attention_fn)(X, deterministic=True)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_linen_layer_evaluates_as_with_its_own_function():
    make = functools.partial(linen.MultiHeadDotProductAttention, 4, dropout_rate=0.3)
    params = make().init(jax.random.key(0), X, deterministic=True)
    mask = linen.make_causal_mask(X[..., 0])
    expected = np.asarray(make().apply(params, X, mask=mask, deterministic=True))
    layer = make(attention_fn=attention_fn)
    y = np.asarray(layer.apply(params, X, mask=mask, deterministic=True))
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("broadcast", [False, True])
def test_layers_drop_what_the_function_drops(broadcast, key):
    y = attention_fn(QUERY, KEY, VALUE, None, None, broadcast, key, 0.3)
    shared = (0, 1) if broadcast else ()
    expected = dot_product_attention(
        QUERY, KEY, VALUE, dropout_rate=0.3, dropout_key=key, dropout_broadcast_dims=shared
    )
    np.testing.assert_array_equal(y, expected)
    by_weights = attention_fn(
        QUERY, KEY, VALUE, None, None, broadcast, key, 0.3, einsum_dot_general=jax.lax.dot_general
    )
    np.testing.assert_allclose(by_weights, expected, atol=1e-5)


@pytest.mark.slow
def test_gradient_is_that_with_all_weights(key):
    def total(query, **options):
        return (attention_fn(query, KEY, VALUE, None, None, False, key, 0.3, **options) ** 2).sum()

    whole = jax.grad(functools.partial(total, einsum_dot_general=jax.lax.dot_general))(QUERY)
    np.testing.assert_allclose(jax.grad(total)(QUERY), whole, rtol=1e-4, atol=1e-5)


def test_layer_has_no_array_of_all_weights():
    layer = nnx_layer(dropout_rate=0.3, broadcast_dropout=False, attention_fn=attention_fn)
    x = jnp.ones((1, 1024, 16))
    program = str(jax.make_jaxpr(lambda x: layer(x, deterministic=False, rngs=nnx.Rngs(1)))(x))
    assert "1024,1024" not in program
    own = nnx_layer(dropout_rate=0.3)
    assert "1024,1024" in str(
        jax.make_jaxpr(lambda x: own(x, deterministic=False, rngs=nnx.Rngs(1)))(x)
    )


def test_layers_sow_their_weights():
    layer = nnx_layer(attention_fn=attention_fn)
    _, sown = nnx.capture(lambda m: m(X, sow_weights=True), nnx.Intermediate)(layer)
    (weights,) = jax.tree.leaves(sown)
    assert weights.shape == (2, 4, 70, 70)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    module = linen.MultiHeadDotProductAttention(4, attention_fn=attention_fn)
    params = module.init(jax.random.key(0), X)
    _, state = module.apply(params, X, sow_weights=True, mutable=["intermediates"])
    (weights,) = jax.tree.leaves(state)
    assert weights.shape == (2, 4, 70, 70)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(batch, key):
    rng = np.random.default_rng(2)
    query, k, value = rng.normal(size=(3, *batch, 40, 4, 8)).astype(np.float32)
    mask = rng.random((*batch, 1, 40, 40)) < 0.8
    bias = rng.normal(size=(4, 40, 40)).astype(np.float32)
    y = attention_fn(query, k, value, bias, mask, False, key, 0.2)
    query, k, value = (x.reshape(-1, 40, 4, 8) for x in (query, k, value))
    mask = mask.reshape(-1, 1, 40, 40)
    expected = dot_product_attention(query, k, value, bias, mask, dropout_rate=0.2, dropout_key=key)
    np.testing.assert_allclose(y, expected.reshape(y.shape), atol=1e-6)


def test_value_may_have_another_depth(key):
    value = jnp.concatenate([VALUE, VALUE], axis=-1)
    y = attention_fn(QUERY, KEY, value, None, None, False, key, 0.3, is_causal=True)
    half = attention_fn(QUERY, KEY, VALUE, None, None, False, key, 0.3, is_causal=True)
    np.testing.assert_allclose(y, jnp.concatenate([half, half], axis=-1), atol=1e-5)


def test_einsums_of_the_caller_are_used(key):
    used = []

    def einsum(subscripts, a, b):
        used.append(subscripts)
        return jnp.einsum(subscripts, a, b)

    attention_fn(
        QUERY,
        KEY,
        VALUE,
        dropout_rng=key,
        dropout_rate=0.1,
        qk_attn_weights_einsum=einsum,
        attn_weights_value_einsum=einsum,
    )
    assert used == ["...qhd,...khd->...hqk", "...hqk,...khd->...qhd"]


@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGH, ("high", "high")])
def test_precision_is_that_of_the_products(precision):
    program = str(
        jax.make_jaxpr(functools.partial(attention_fn, precision=precision))(QUERY, KEY, VALUE)
    )
    name = "HIGHEST" if precision == "highest" else "HIGH"
    assert f"Precision.{name}" in program


def test_dtype_is_that_of_the_computation():
    assert attention_fn(QUERY, KEY, VALUE, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert attention_fn(QUERY.astype(jnp.bfloat16), KEY, VALUE).dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dropout_rate": 0.1}, ValueError, "Pass dropout_rng=jax.random.key"),
        ({"qk_attn_weights_einsum": jnp.einsum}, ValueError, "must be specified together"),
        ({"precision": ("high", "highest")}, ValueError, "precision"),
        ({"value": VALUE[:, :60]}, ValueError, "lengths must match"),
        ({"key": KEY[:1]}, ValueError, "batch dims must match"),
        ({"key": KEY[0]}, ValueError, "same rank"),
        ({"key": KEY[..., :7]}, ValueError, "depths must match"),
        ({"key": KEY[:, :, :3], "value": VALUE[:, :, :3]}, ValueError, "must be a multiple"),
    ],
)
def test_errors_name_the_argument(options, error, words):
    with pytest.raises(error, match=words):
        attention_fn(**({"query": QUERY, "key": KEY, "value": VALUE} | options))
