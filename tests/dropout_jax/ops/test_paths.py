"""Skipped layers are not computed; connections and zoneout as their papers have them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_registry import sample

from dropout_jax import drop_connect, fold, keep_mask, layer_drop, zoneout


def test_a_skipped_layer_is_not_computed(key):
    """The layer calls back to the host when it runs; it runs where the scalar's mask keeps it."""
    ran = []

    def layer(x):
        jax.debug.callback(lambda: ran.append(1))
        return x + 1

    step = jax.jit(lambda x, k: layer_drop(layer, x, 0.5, key=k))
    keys = [fold(key, i) for i in range(30)]
    outputs = [float(step(jnp.zeros(()), k)) for k in keys]
    jax.effects_barrier()
    kept = [bool(keep_mask(k, 0.5, ())) for k in keys]
    assert outputs == [float(k) for k in kept]
    assert len(ran) == sum(kept)
    assert 0 < sum(kept) < 30


def test_a_layer_that_changes_the_shape_is_refused(key):
    with pytest.raises(ValueError, match=r"layer\(x\)\.shape=\(3,\) is not allowed"):
        layer_drop(lambda x: x[:3], jnp.ones(4), 0.5, key=key)
    with pytest.raises(ValueError, match=r"layer\(x\)\.dtype"):
        layer_drop(lambda x: x.astype(jnp.float16), jnp.ones(4), 0.5, key=None)


def test_layer_drops_gradient_follows_the_choice(key):
    slope = jax.grad(lambda x, k: layer_drop(lambda x: 3 * x, x, 0.5, key=k))
    for i in range(10):
        k = fold(key, i)
        assert slope(jnp.ones(()), k) == (3 if keep_mask(k, 0.5, ()) else 1)


def test_drop_connects_variance_of_a_product(key):
    """var (W v)_i = p / q sum_j W_ij^2 v_j^2; |z| < 4.9 over 20,000 keys."""
    weights, v, rate, draws = sample((5, 40)), sample(40, seed=1), 0.3, 20_000
    keys = jax.random.split(key, draws)
    products = jax.vmap(lambda k: drop_connect(weights, rate, key=k) @ v)(keys)
    centred = np.asarray(products, np.float64) - weights @ v
    q = 1 - rate
    expected = (1 - q) / q * (weights**2 @ v**2)
    z_mean = centred.mean(0) / np.sqrt(expected / draws)
    z_variance = ((centred**2).mean(0) - expected) / ((centred**2).std(0) / np.sqrt(draws))
    assert (abs(z_mean) < 4.9).all()
    assert (abs(z_variance) < 4.9).all()


def test_attention_weights_variance_of_the_output(key):
    """Dropping attention weights a: var of sum_s a_s v_s is p / q sum a^2 v^2."""
    from dropout_jax import dropout

    a = np.asarray(jax.nn.softmax(jnp.asarray(sample((1, 1, 1, 40)))))
    v, rate, draws = sample(40, seed=1), 0.1, 20_000
    keys = jax.random.split(key, draws)
    products = jax.vmap(lambda k: dropout(a, rate, key=k)[0, 0, 0] @ v)(keys)
    centred = np.asarray(products, np.float64) - float(a[0, 0, 0] @ v)
    q = 1 - rate
    expected = (1 - q) / q * (a[0, 0, 0] ** 2 @ v**2)
    assert abs(centred.mean()) < 4.9 * np.sqrt(expected / draws)
    error = (centred**2).std() / np.sqrt(draws)
    assert abs((centred**2).mean() - expected) < 4.9 * error


def test_zoneouts_gradients_go_where_the_state_came_from(key):
    new, old = jnp.asarray(sample(100)), jnp.asarray(sample(100, seed=1))
    of_new, of_old = jax.grad(lambda n, o: zoneout(n, o, 0.3, key=key).sum(), (0, 1))(new, old)
    keep = keep_mask(key, 0.3, (100,))
    np.testing.assert_array_equal(of_new, keep)
    np.testing.assert_array_equal(of_old, ~keep)


def test_zoneout_leaves_an_infinite_state_that_cannot_be_kept():
    new, old = jnp.ones(3), jnp.full(3, jnp.inf)
    np.testing.assert_array_equal(zoneout(new, old, 0.0, key=None), new)
    call = jax.jit(lambda r: zoneout(new, old, r, key=None))
    np.testing.assert_array_equal(call(0.0), new)
    np.testing.assert_array_equal(call(1.0), old)
