"""What every op promises, for every row of the registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import ONE_OP_A_FAMILY, one_op_a_family, slow
from op_registry import OPS, sample

all_ops = pytest.mark.parametrize("op", OPS, ids=str)

zeroing_ops = pytest.mark.parametrize("op", [op for op in OPS if op.zeroes], ids=str)


def words(key):
    return np.asarray(jax.random.key_data(key))


def assert_same(op, got, expected):
    """Bit for bit, or within the row's ulps of the largest finite output in its dtype.

    On a GPU XLA divides to one ulp, so the scale, too, may be one off.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    ulps = op.ulps + (jax.default_backend() == "gpu")
    if ulps == 0 or got.size == 0:
        np.testing.assert_array_equal(got, expected)
        return
    step = float(jnp.finfo(got.dtype).eps) * max(1.0, float(np.abs(expected).max()))
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_allclose(got, expected, rtol=0, atol=ulps * step)
    if op.zeroes:
        np.testing.assert_array_equal(got == 0, expected == 0)


@ONE_OP_A_FAMILY
@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16"), slow("float16")])
def test_equals_the_oracle(op, dtype, key):
    for shape in op.shapes if dtype == "float32" else op.shapes[-1:]:
        x = sample(shape, dtype)
        for rate in (0.0, 0.1, 0.5, 0.9, 1.0):
            assert_same(op, op.fn(x, rate, key=key), op.oracle(x, rate, key=words(key)))


@ONE_OP_A_FAMILY
def test_float64_equals_the_oracle(op, key):
    rtol = 1e-14 * op.ulps if op.name != "gaussian_dropout" else 5e-5  # its noise is float32
    with jax.enable_x64(True):
        x = sample(op.shapes[-1], "float64")
        y = op.fn(x, 0.3, key=key)
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
        expected = op.oracle(x, 0.3, key=words(key))
        np.testing.assert_allclose(y, expected, rtol=rtol, atol=rtol)


@ONE_OP_A_FAMILY
@pytest.mark.parametrize("traced", [slow(False), True])
def test_gradient_is_that_of_a_fixed_mask(op, traced, key):
    """With its mask fixed every op is affine in x: <g, f(x + d) - f(x)> = <vjp(g), d>, exactly."""
    with jax.enable_x64(True):
        shape = op.shapes[-1]
        x, d, g = (jnp.asarray(sample(shape, "float64", seed)) for seed in range(3))
        for rate in (0.0, 0.3, 1.0):

            def run(x, rate):
                return op.fn(x, rate, key=key)

            pullback = jax.vjp(jax.jit(run) if traced else run, x, rate)[1]
            change = (run(x + d, rate) - run(x, rate)) * g
            gradient, _ = pullback(g)
            np.testing.assert_allclose((gradient * d).sum(), change.sum(), rtol=1e-9, atol=1e-12)
            if op.linear and op.ulps == 0 and "layer" not in op.name:
                expected = op.oracle(np.asarray(g), rate, key=words(key))
                np.testing.assert_array_equal(gradient, expected)


@ONE_OP_A_FAMILY
@pytest.mark.parametrize("rate", [0.3, slow(0.0), slow(1.0)])
def test_no_gradient_flows_to_the_rate_and_those_of_x_are_finite(op, rate, key):
    x = jnp.asarray(sample(op.shapes[-1]))
    for k in (key, None):
        gradient = jax.jit(jax.grad(lambda x, r: op.fn(x, r, key=k).sum(), (0, 1)))  # noqa: B023
        of_x, of_rate = gradient(x, rate)
        assert of_rate == 0
        assert jnp.isfinite(of_x).all()


@all_ops
def test_no_key_is_evaluation(op):
    x = jnp.asarray(sample(op.shapes[-1]))
    if op.evaluation is None:
        assert op.fn(x, 0.3, key=None) is x
    else:
        expected = op.evaluation(np.asarray(x), 0.3)
        np.testing.assert_allclose(op.fn(x, 0.3, key=None), expected, rtol=1e-6, atol=1e-7)
        traced = jax.jit(lambda x, rate: op.fn(x, rate, key=None))
        np.testing.assert_allclose(traced(x, 0.3), expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(TypeError, match="key"):
        op.fn(x, 0.3)


@ONE_OP_A_FAMILY
def test_rate_zero_and_rate_one(op, key):
    x = jnp.asarray(sample(op.shapes[-1]))
    at_zero = op.evaluation(np.asarray(x), 0.0) if op.name == "layer_drop" else x
    for call in (op.fn, jax.jit(op.fn)):
        np.testing.assert_array_equal(call(x, 0.0, key=key), at_zero)
        np.testing.assert_array_equal(call(x, 1.0, key=key), op.at_one(np.asarray(x)))


@zeroing_ops
def test_a_dropped_nan_or_infinity_is_zero(op, key):
    shape = op.shapes[-1]
    for k in jax.random.split(key, 20):
        kept = np.asarray(op.fn(jnp.ones(shape), 0.5, key=k)) != 0
        for bad in (np.nan, np.inf, -np.inf):
            y = op.fn(jnp.full(shape, bad), 0.5, key=k)
            np.testing.assert_array_equal(y, np.where(kept, bad, 0))
        if not kept.all():
            return
    pytest.fail("nothing was dropped in twenty tries")


@ONE_OP_A_FAMILY
@pytest.mark.parametrize("rate", [1.5, slow(-0.1), slow(jnp.nan), slow(jnp.inf)])
def test_a_traced_rate_out_of_range_gives_nan(op, rate, key):
    x = jnp.asarray(sample(op.shapes[-1]))
    y = np.asarray(jax.jit(op.fn)(x, rate, key=key))
    if op.name == "masked_dropout":
        from op_registry import where_of

        y = y[where_of(x)]
    assert np.isnan(y).all()


# Excluded: their rows make arrays of NumPy's in the call.
@one_op_a_family("zoneout", "masked_dropout")
def test_an_eager_call_moves_nothing_implicitly(op, key):
    """The transfer of a known rate is explicit, which jax.transfer_guard allows."""
    x = jnp.asarray(sample(op.shapes[-1]))
    expected = op.fn(x, 0.3, key=key)
    with jax.transfer_guard("disallow"):
        y = op.fn(x, 0.3, key=key)
    assert_same(op, y, expected)


@ONE_OP_A_FAMILY
def test_a_rate_that_changes_does_not_retrace(op, key):
    traces = []

    @jax.jit
    def step(x, rate):
        traces.append(rate)
        return op.fn(x, rate, key=key)

    x = jnp.asarray(sample(op.shapes[-1]))
    for rate in (0.1, 0.2, 0.5, 0.0, 1.0):
        step(x, rate)
    assert len(traces) == 1


# Excluded: it folds, so its key may be folded again under other names.
@one_op_a_family("multi_sample_dropout")
def test_a_key_used_twice_is_caught(op):
    x = jnp.asarray(sample(op.shapes[-1]))
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        op.fn(x, 0.3, key=key)
        with pytest.raises(jax.errors.KeyReuseError):
            op.fn(x, 0.3, key=key)
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(lambda k: op.fn(op.fn(x, 0.3, key=k), 0.3, key=k))(jax.random.key(1))


@ONE_OP_A_FAMILY
def test_empty_and_single_element_arrays(op, key):
    rank = len(op.shapes[-1])
    sizes = [(2,) * rank] if op.name == "drop_block" else [(1,) * rank, (*(1,) * (rank - 1), 0)]
    for shape in [*sizes, (0, *(2,) * (rank - 1))]:
        x = jnp.zeros(shape)
        assert op.fn(x, 0.3, key=key).shape == shape


@ONE_OP_A_FAMILY
def test_complex_arrays(op, key):
    x = (sample(op.shapes[-1]) + 1j * sample(op.shapes[-1], seed=1)).astype(np.complex64)
    if not op.complex_too:
        with pytest.raises(TypeError, match="floating-point array, not complex64"):
            op.fn(x, 0.3, key=key)
        return
    y = op.fn(x, 0.3, key=key)
    assert y.dtype == jnp.complex64
    if op.zeroes:
        np.testing.assert_array_equal(y == 0, op.fn(x.real, 0.3, key=key) == 0)


# Excluded: the residuals of the layer, several masks, and the caller's `where`.
@one_op_a_family("layer_drop", "multi_sample_dropout", "masked_dropout")
def test_the_mask_needs_no_residual_but_bits(op, key):
    """The backward pass keeps at most a bit an element, and what the arithmetic itself needs."""
    shape = (8, 32, 64)
    _, pullback = jax.vjp(lambda x: op.fn(x, 0.3, key=key), jnp.asarray(sample(shape)))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pullback))
    assert kept <= np.prod(shape) / 8 + 16


@ONE_OP_A_FAMILY
@pytest.mark.parametrize("rate", [0.1, slow(0.5)])
def test_means_and_covariances_are_the_closed_forms(op, rate, key):
    """|z| < 4.9 for the mean and for every entry of the covariance, over 20,000 keys.

    The deviation of a sample covariance's entry is estimated from the products themselves.
    """
    draws = 20_000
    x = sample(op.small, seed=3) + 1.5
    keys = jax.random.split(key, draws)
    outputs = jax.jit(jax.vmap(lambda k: op.fn(jnp.asarray(x), rate, key=k)))(keys)
    y = np.asarray(outputs, np.float64).reshape(draws, -1)
    mean, covariance = op.moments(x.astype(np.float64), rate)
    centred = y - mean
    deviation = np.sqrt(np.diag(covariance) / draws)
    assert (abs(centred.mean(0)) <= 4.9 * deviation + 1e-6).all()
    second = centred.T @ centred / draws
    fourth = (centred**2).T @ (centred**2) / draws
    error = np.sqrt(np.maximum(fourth - second**2, 0) / draws)
    bound = 4.9 * error + 1e-5 * (1 + abs(covariance))  # the second term is float32's rounding
    assert (abs(second - covariance) <= bound).all()
    wrong = op.moments(x.astype(np.float64), rate * 1.2)[1]
    assert (abs(second - wrong) > bound).any()  # the bound can fail
