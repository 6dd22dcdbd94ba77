"""apply_mask, the residual of the backward pass, and the arithmetic of the scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import temporary_bytes
from op_registry import sample

from dropout_jax import apply_mask, dropout, keep_mask, reference


def residual_bytes(fn, x):
    _, pullback = jax.vjp(fn, x)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(pullback))


@pytest.mark.parametrize("broadcast_dims", [(), (1,)])
def test_dropout_is_keep_mask_applied(key, broadcast_dims):
    x = sample((6, 50))
    keep = keep_mask(key, 0.3, x.shape, broadcast_dims=broadcast_dims)
    y = dropout(x, 0.3, key=key, broadcast_dims=broadcast_dims)
    np.testing.assert_array_equal(y, apply_mask(x, keep, 0.3))
    np.testing.assert_array_equal(y, reference.apply_mask(x, np.asarray(keep), 0.3))


def test_a_mask_from_anywhere_works_and_rate_one_still_gives_zeros():
    x = jnp.array([1.0, 2.0, jnp.nan])
    keep = np.array([True, False, False])
    np.testing.assert_array_equal(apply_mask(x, keep, 0.75), [4.0, 0.0, 0.0])
    np.testing.assert_array_equal(apply_mask(x, keep, 1.0), [0.0, 0.0, 0.0])


@pytest.mark.parametrize("jit", [False, True])
def test_the_backward_pass_keeps_one_bit_an_element(key, jit):
    x = jnp.asarray(sample((256, 512)))

    def fn(x):
        return dropout(x, 0.1, key=key)

    scalar = 4  # the rate
    assert residual_bytes(jax.jit(fn) if jit else fn, x) <= x.size / 8 + scalar


def test_a_bool_mask_would_not_pass_that_test(key):
    x = jnp.asarray(sample((256, 512)))
    keep = keep_mask(key, 0.1, x.shape)
    assert residual_bytes(lambda x: apply_mask(x, keep, 0.1), x) > x.size / 8 + 4


def test_a_stack_of_layers_keeps_one_bit_an_element_in_the_compiled_program(key):
    """Flax keeps a bool mask (or more) for each layer; here twelve layers keep twelve bits."""
    x = jnp.ones((512, 1024))

    def stack(x, drop):
        for layer in range(12):
            x = jnp.tanh(drop(x, jax.random.fold_in(key, layer)))
        return x.sum()

    def temporaries(drop):
        grad = jax.jit(jax.grad(lambda x: stack(x, drop)))
        return temporary_bytes(grad.lower(x).compile())

    without = temporaries(lambda x, _: x)
    ours = temporaries(lambda x, k: dropout(x, 0.1, key=k)) - without
    assert ours <= 12 * x.size / 8 * 1.1


def test_float16_overflows_to_inf_like_any_product(key):
    x = np.full(200, 6e4, np.float16)
    y = np.asarray(dropout(x, 0.5, key=key))
    assert set(y.tolist()) == {0.0, np.inf}


def test_bfloat16_is_unbiased(key):
    """Flax divides by bfloat16(0.9) = 0.8984 and is biased by 0.2 %; here the scale is float32."""
    x = jnp.ones((1,), jnp.bfloat16)
    scale = np.float32(1 / 0.9)
    kept = apply_mask(x, np.array([True]), 0.1)
    np.testing.assert_array_equal(kept, jnp.asarray([scale], jnp.bfloat16))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_scale_of_ones_own(dtype):
    """A factor that no rate gives."""
    with jax.enable_x64(dtype is np.float64):
        x, keep = sample(100).astype(dtype), sample(100, seed=1) > 0
        expected = np.where(keep, x * dtype(1 / 3), 0)
        np.testing.assert_array_equal(apply_mask(x, keep, scale=1 / 3), expected)
        traced = jax.jit(lambda scale: apply_mask(x, keep, scale=scale))
        np.testing.assert_array_equal(traced(dtype(1 / 3)), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rates", "tolerance"),
    [((0.05, 0.1, 0.2, 0.3, 1 / 3, 0.5, 0.9, 0.95), 1e-6), ((0.98, 0.99, 0.999), 2e-5)],
)
def test_kept_values_are_x_over_one_minus_rate(key, rates, tolerance, dtype):
    """As PyTorch, Flax and Keras are tested, with the rate in double precision.

    The rate is rounded to float32, so that 1 becomes 1 / (1 - rate) to 2^-25 / (1 - rate).
    """
    with jax.enable_x64(dtype is np.float64):
        for rate in rates:
            x = sample(5000).astype(dtype) + 3
            y = np.asarray(dropout(x, rate, key=key))
            kept = y != 0
            assert kept.any()
            np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=tolerance)
            one = apply_mask(dtype(1), np.array(True), rate)
            np.testing.assert_allclose(one, 1 / (1 - rate), rtol=1e-6 if rate <= 0.98 else 2e-5)
            keep = keep_mask(key, rate, x.shape)
            np.testing.assert_array_equal(apply_mask(x, keep, rate), y)


def test_complex_numbers_are_scaled_by_parts(key):
    x = (sample(100) + 1j * sample(100, seed=1)).astype(np.complex64)
    x[0] = np.inf + 1j
    keep = np.ones(100, bool)
    y = apply_mask(x, keep, 0.5)
    assert y.dtype == jnp.complex64
    np.testing.assert_array_equal(y, reference.apply_mask(x, keep, 0.5))
    dropped = dropout(x, 0.5, key=key)
    oracle = reference.dropout(x, 0.5, key=np.asarray(jax.random.key_data(key)))
    np.testing.assert_array_equal(dropped, oracle)


def test_fold_key_is_not_a_mask_word(key):
    """The mask's seed is a fold of the key, so its words are not those of a split."""
    children = np.asarray(jax.random.key_data(jax.random.split(key, 64))).ravel()
    from dropout_jax.random import _masks as masks

    params = masks.mask_params(key, jnp.float32(0.5))
    words = np.asarray(masks.draw_packed_mask(params, (64, 64))).ravel()
    assert not set(children.tolist()) & set(words.tolist())
