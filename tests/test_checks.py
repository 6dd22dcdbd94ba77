"""Bad input: each case with its exact error type and a message that helps; odd input that works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import OPS

from dropout_jax import apply_mask, dropout, fold, keep_mask

KEY = jax.random.key(0)
X = np.ones((4, 6), np.float32)
ops = pytest.mark.parametrize("op", OPS, ids=str)


def refused(error, name, value, call, *args, **kwargs):
    """The error names the argument, its value, what is allowed, and a remedy."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is error
    message = str(caught.value)
    shown = repr(value)[:200]
    assert message.startswith(f"{name}={shown}"), message
    assert f" is not allowed: {name} must be " in message, message
    remedy = message.split(" must be ", 1)[1]
    assert ". " in remedy, f"no remedy in: {message}"


BAD_RATES = [
    (-0.1, ValueError),
    (1.5, ValueError),
    (30, ValueError),
    (float("nan"), ValueError),
    (float("inf"), ValueError),
    (-float("inf"), ValueError),
    (1 - 2**-20, ValueError),
    (1 - 2**-17, ValueError),
    (np.float64(2), ValueError),
    (jnp.float32(-1), ValueError),
    (np.full((5,), 0.1), ValueError),
    (jnp.full((4, 1), 0.1), ValueError),
    ("x", TypeError),
    (None, TypeError),
    (True, TypeError),
    (np.bool_(False), TypeError),
    (jnp.bool_(True), TypeError),
    ([0.1], TypeError),
    (0.1j, TypeError),
    (np.complex64(0.1), TypeError),
    (jnp.complex64(0.1), TypeError),
]


@ops
@pytest.mark.parametrize(("rate", "error"), BAD_RATES, ids=str)
@pytest.mark.parametrize("key", [KEY, None], ids=["training", "evaluation"])
def test_bad_rate(op, rate, error, key):
    refused(error, "rate", rate, op.fn, X, rate, key=key)


@pytest.mark.parametrize(("rate", "error"), BAD_RATES, ids=str)
def test_bad_rate_of_the_mask_functions(rate, error):
    refused(error, "rate", rate, keep_mask, KEY, rate, (3,))
    refused(error, "rate", rate, apply_mask, X, X > 0, rate)


def test_the_remedy_fits_the_mistake():
    with pytest.raises(ValueError, match=r"30 per cent write 0\.3"):
        dropout(X, 30, key=KEY)
    with pytest.raises(ValueError, match=r"jax\.vmap"):
        dropout(X, np.full(5, 0.1), key=KEY)
    with pytest.raises(TypeError, match=r"jax\.random\.key\(42\)"):
        dropout(X, 0.1, key=42)


BAD_X = [
    (np.ones(3, np.int32), TypeError),
    (np.ones(3, bool), TypeError),
    ([1.0, 2.0], TypeError),
    (None, TypeError),
    (np.array([None, 1.0]), TypeError),
    ("x", TypeError),
    (1.0, TypeError),
]


@ops
@pytest.mark.parametrize(("x", "error"), BAD_X, ids=repr)
@pytest.mark.parametrize("key", [KEY, None], ids=["training", "evaluation"])
def test_bad_x(op, x, error, key):
    refused(error, "x", x, op.fn, x, 0.1, key=key)


BAD_KEYS = [
    (42, TypeError, "key"),
    (np.int64(7), TypeError, "key"),
    (True, TypeError, "key"),
    (0.5, TypeError, "key"),
    ("seed", TypeError, "key"),
    (np.zeros(2, np.int32), TypeError, "key"),
    (np.zeros(3, np.uint32), ValueError, "key.shape"),
    (np.uint32(1), TypeError, "key"),
    (np.zeros((2, 2), np.uint32), ValueError, "key.shape"),
]


@ops
@pytest.mark.parametrize(("key", "error", "name"), BAD_KEYS, ids=repr)
def test_bad_key(op, key, error, name):
    shown = key.shape if name == "key.shape" else key
    if key is BAD_KEYS[-1][0]:
        shown = (2,)  # two raw keys are a batch of two
    refused(error, name, shown, op.fn, X, 0.1, key=key)


@ops
def test_batched_and_missing_keys(op):
    refused(ValueError, "key.shape", (3,), op.fn, X, 0.1, key=jax.random.split(KEY, 3))
    with pytest.raises(TypeError, match="key"):
        op.fn(X, 0.1)


@pytest.mark.parametrize(
    ("dims", "error", "shown"),
    [
        ((7,), ValueError, 7),
        ((-7,), ValueError, -7),
        ((0, 0), ValueError, (0, 0)),
        ((1, -1), ValueError, (1, -1)),
        ((0.0,), TypeError, 0.0),
        ((True,), TypeError, True),
        (("time",), TypeError, "time"),
        (0, TypeError, 0),
        (None, TypeError, None),
    ],
    ids=repr,
)
def test_bad_broadcast_dims(dims, error, shown):
    refused(error, "broadcast_dims", shown, dropout, X, 0.1, key=KEY, broadcast_dims=dims)
    refused(error, "broadcast_dims", shown, keep_mask, KEY, 0.1, X.shape, broadcast_dims=dims)


@pytest.mark.parametrize(
    ("keep", "error", "name", "shown"),
    [
        (np.ones((4, 6)), TypeError, "keep", None),
        (None, TypeError, "keep", None),
        ([True], TypeError, "keep", None),
        (np.ones(5, bool), ValueError, "keep.shape", (5,)),
        (np.ones((2, 4, 6), bool), ValueError, "keep.shape", (2, 4, 6)),
    ],
    ids=repr,
)
def test_bad_mask(keep, error, name, shown):
    refused(error, name, keep if shown is None else shown, apply_mask, X, keep, 0.1)


@pytest.mark.parametrize(
    ("shape", "error"),
    [(5, TypeError), ("ab", TypeError), ((2.5,), TypeError), ((-1,), ValueError)],
)
def test_bad_shape(shape, error):
    refused(error, "shape", shape, keep_mask, KEY, 0.1, shape)


def test_a_mask_beyond_the_counters_is_refused():
    refused(ValueError, "shape", (2**33, 32), keep_mask, KEY, 0.1, (2**33, 32))
    refused(ValueError, "shape", (2**35,), keep_mask, KEY, 0.1, (2**35,))


def test_there_is_no_mask_at_evaluation():
    with pytest.raises(TypeError, match="key=None"):
        keep_mask(None, 0.1, (3,))


@pytest.mark.parametrize(
    "rate", [jnp.int32(1), np.int64(0), 0, 1, np.float16(0.5), jnp.bfloat16(0.5)]
)
def test_numbers_of_any_kind_are_rates(rate):
    np.testing.assert_array_equal(dropout(X, rate, key=KEY), dropout(X, float(rate), key=KEY))


@pytest.mark.parametrize(
    "x",
    [
        np.float32(2.0),
        np.zeros((0, 5), np.float32),
        np.full(40, np.nan, np.float32),
        np.ones(40, np.complex64),
        jnp.ones(40, jnp.float8_e4m3fn),
    ],
    ids=repr,
)
def test_scalars_empty_nan_complex_and_float8_arrays_work(x):
    y = dropout(x, 0.5, key=KEY)
    assert y.shape == np.shape(x)
    assert y.dtype == x.dtype
    keep = keep_mask(KEY, 0.5, y.shape)
    np.testing.assert_array_equal(y != 0, keep)


def test_raw_key_words_work():
    raw = jax.random.key_data(KEY)
    np.testing.assert_array_equal(dropout(X, 0.5, key=raw), dropout(X, 0.5, key=KEY))
    np.testing.assert_array_equal(dropout(X, 0.5, key=np.asarray(raw)), dropout(X, 0.5, key=KEY))


def test_raw_keys_follow_the_default_implementation():
    with jax.default_prng_impl("rbg"):
        raw = jax.random.PRNGKey(3)
        same = jax.random.key(3)
        assert raw.shape == (4,)
        np.testing.assert_array_equal(dropout(X, 0.5, key=raw), dropout(X, 0.5, key=same))


def test_fold_refuses_what_is_no_key():
    refused(TypeError, "key", 42, fold, 42, "block")
    refused(ValueError, "key.shape", (2,), fold, jax.random.split(KEY), "block")
