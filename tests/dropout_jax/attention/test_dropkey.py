"""DropKey: which logits are dropped, and that no row loses them all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropout_jax import dropkey_bias, keep_mask, reference


@pytest.mark.parametrize("shape", [(3,), (2, 40), (2, 2, 5, 7), (1, 2, 4, 64)], ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 1.0])
def test_bias_is_the_oracles(shape, rate, key):
    words = np.asarray(jax.random.key_data(key))
    expected = reference.dropkey_bias(shape, rate, key=words)
    np.testing.assert_array_equal(dropkey_bias(shape, rate, key=key), expected)
    traced = jax.jit(lambda r: dropkey_bias(shape, r, key=key))
    np.testing.assert_array_equal(traced(rate), expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, "float16"])
def test_no_row_loses_all_its_keys(dtype, key):
    """At rate 0.9 over 3 keys, 0.729 of the rows would; their softmax would be NaN."""
    shape = (1000, 3)
    bias = dropkey_bias(shape, 0.9, key=key, dtype=dtype)
    assert bias.dtype == dtype
    assert jnp.isfinite(jax.nn.softmax(bias.astype(jnp.float32))).all()
    keep = np.asarray(keep_mask(key, 0.9, shape))
    lost = np.logical_not(keep.any(-1))
    assert abs(lost.mean() - 0.729) < 4.9 * np.sqrt(0.729 * 0.271 / 1000)
    np.testing.assert_array_equal(bias == 0, keep | lost[:, None])


def test_evaluation_and_rates_out_of_range(key):
    np.testing.assert_array_equal(dropkey_bias((2, 3), 0.5, key=None), jnp.zeros((2, 3)))
    assert jnp.isnan(jax.jit(lambda r: dropkey_bias((2, 3), r, key=key))(2.0)).all()


def test_a_known_rate_makes_no_nan_op_by_op(key):
    """jax.debug_nans without jit sees the constants of a program too."""
    with jax.disable_jit(), jax.debug_nans(True):
        bias = dropkey_bias((2, 40), 0.3, key=key)
    np.testing.assert_array_equal(bias, dropkey_bias((2, 40), 0.3, key=key))
