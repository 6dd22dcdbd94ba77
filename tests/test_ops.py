"""What every op promises (DESIGN section 2), run over every row of the registry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import OPS, sample

all_ops = pytest.mark.parametrize("op", OPS, ids=str)
dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])


def words(key):
    return np.asarray(jax.random.key_data(key))


@all_ops
@dtypes
def test_equals_the_oracle_bit_for_bit(op, dtype, key):
    for shape in op.shapes:
        x = sample(shape, dtype)
        for rate in (0.0, 0.1, 0.5, 0.9, 1.0):
            y = op.fn(x, rate, key=key)
            assert (y.dtype, y.shape) == (x.dtype, x.shape)
            np.testing.assert_array_equal(y, op.oracle(x, rate, key=words(key)))


@all_ops
def test_float64_equals_the_oracle_bit_for_bit(op, key):
    with jax.enable_x64(True):
        for shape in op.shapes:
            x = sample(shape, "float64")
            y = op.fn(x, 0.3, key=key)
            assert (y.dtype, y.shape) == (x.dtype, x.shape)
            np.testing.assert_array_equal(y, op.oracle(x, 0.3, key=words(key)))


@all_ops
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_eager_jit_traced_remat_and_scan_agree(op, rate, key):
    x = jnp.asarray(sample(op.shapes[-1]))
    call = functools.partial(op.fn, key=key)
    eager = call(x, rate)
    np.testing.assert_array_equal(jax.jit(lambda x: call(x, rate))(x), eager)
    np.testing.assert_array_equal(jax.jit(call)(x, rate), eager)
    np.testing.assert_array_equal(jax.checkpoint(lambda x: call(x, rate))(x), eager)
    _, scanned = jax.lax.scan(lambda _, k: (None, op.fn(x, rate, key=k)), None, key[None])
    np.testing.assert_array_equal(scanned[0], eager)


@all_ops
def test_vmap_over_keys_equals_a_loop(op, key):
    x = jnp.asarray(sample(op.shapes[-1]))
    keys = jax.random.split(key, 3)
    loop = jnp.stack([op.fn(x, 0.3, key=k) for k in keys])
    np.testing.assert_array_equal(jax.vmap(lambda k: op.fn(x, 0.3, key=k))(keys), loop)
    assert (loop[0] != loop[1]).any()


@all_ops
def test_vmap_over_rates_equals_a_loop(op, key):
    x = jnp.asarray(sample(op.shapes[-1]))
    rates = jnp.float32([0.0, 0.3, 1.0])
    loop = jnp.stack([op.fn(x, float(r), key=key) for r in rates])
    np.testing.assert_array_equal(jax.vmap(lambda r: op.fn(x, r, key=key))(rates), loop)


@all_ops
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_gradient_is_the_same_mask_on_the_cotangent(op, rate, traced, key):
    for shape in op.shapes:
        x, g = jnp.asarray(sample(shape)), jnp.asarray(sample(shape, seed=1))

        def pullback(x, g, rate):
            return jax.vjp(lambda x: op.fn(x, rate, key=key), x)[1](g)[0]

        got = jax.jit(pullback)(x, g, rate) if traced else pullback(x, g, rate)
        np.testing.assert_array_equal(got, op.oracle(np.asarray(g), rate, key=words(key)))


@all_ops
def test_forward_mode_and_second_derivatives_work(op, key):
    x = jnp.asarray(sample(op.shapes[0]))
    _, tangent = jax.jvp(lambda x: op.fn(x, 0.3, key=key), (x,), (x,))
    np.testing.assert_array_equal(tangent, op.fn(x, 0.3, key=key))
    curvature = jax.grad(lambda x: jax.grad(lambda x: (op.fn(x, 0.3, key=key) ** 2).sum())(x).sum())
    assert jnp.isfinite(curvature(x)).all()


@all_ops
def test_no_gradient_flows_to_the_rate(op, key):
    x = jnp.asarray(sample(op.shapes[-1]))
    for rate in (0.0, 0.3, 1.0):
        assert jax.grad(lambda r: op.fn(x, r, key=key).sum())(rate) == 0


@all_ops
def test_no_key_is_evaluation(op):
    x = jnp.asarray(sample(op.shapes[-1]))
    assert op.fn(x, 0.3, key=None) is x
    with pytest.raises(TypeError, match="key"):
        op.fn(x, 0.3)


@all_ops
def test_rate_zero_is_the_identity_and_rate_one_zeros(op, key):
    x = jnp.asarray(sample(op.shapes[-1])).at[0, 0].set(jnp.nan)
    for call in (op.fn, jax.jit(op.fn)):
        np.testing.assert_array_equal(call(x, 0.0, key=key), x)
        np.testing.assert_array_equal(call(x, 1.0, key=key), jnp.zeros_like(x))
    np.testing.assert_array_equal(jax.jit(op.fn)(x, 2**-18, key=key), x)


@all_ops
def test_a_dropped_nan_or_infinity_is_zero(op, key):
    kept = np.asarray(op.fn(jnp.ones(op.shapes[-1]), 0.5, key=key)) != 0
    assert 0 < kept.mean() < 1
    for bad in (np.nan, np.inf, -np.inf):
        y = op.fn(jnp.full(op.shapes[-1], bad), 0.5, key=key)
        np.testing.assert_array_equal(y, np.where(kept, bad, 0))


@all_ops
@pytest.mark.parametrize("rate", [-0.1, 1.5, jnp.nan, jnp.inf])
def test_a_traced_rate_out_of_range_gives_nan(op, rate, key):
    x = jnp.asarray(sample(op.shapes[-1]))
    assert jnp.isnan(jax.jit(op.fn)(x, rate, key=key)).all()


@all_ops
def test_same_key_same_mask_other_key_other_mask(op, key):
    x = jnp.asarray(sample(op.shapes[-1]))
    np.testing.assert_array_equal(op.fn(x, 0.3, key=key), op.fn(x, 0.3, key=key))
    assert (op.fn(x, 0.3, key=key) != op.fn(x, 0.3, key=jax.random.key(1))).any()


@all_ops
def test_a_key_used_twice_is_caught(op):
    x = jnp.asarray(sample(op.shapes[-1]))
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        op.fn(x, 0.3, key=key)
        with pytest.raises(jax.errors.KeyReuseError):
            op.fn(x, 0.3, key=key)
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(lambda k: op.fn(op.fn(x, 0.3, key=k), 0.3, key=k))(jax.random.key(1))


@all_ops
def test_empty_and_single_element_arrays(op, key):
    rank = len(op.shapes[-1])
    for shape in ((0,) * rank, (1,) * rank, (*(1,) * (rank - 1), 0)):
        assert op.fn(jnp.zeros(shape), 0.3, key=key).shape == shape
