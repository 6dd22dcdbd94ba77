"""Bad input: each case with its exact error type and a message that helps; odd input that works."""

# These calls are wrong on purpose.
# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_registry import OPS

import dropout_jax as dj
from dropout_jax import apply_mask, calibration, dropout, fold, keep_mask

pytestmark = pytest.mark.usefixtures("without_type_checker")

KEY = jax.random.key(0)
X = np.ones((4, 6), np.float32)
ops = pytest.mark.parametrize("op", OPS, ids=str)
# Rows whose lambda computes something of x before the op sees it.
plain_ops = pytest.mark.parametrize(
    "op", [op for op in OPS if op.name not in ("zoneout", "masked_dropout")], ids=str
)


def ones(op):
    return np.ones(op.small, np.float32)


def assert_refused(error, name, value, call, *args, **kwargs):
    """The error names the argument, its value, what is allowed, and a remedy."""
    with pytest.raises(error) as info:
        call(*args, **kwargs)
    assert type(info.value) is error
    message = str(info.value)
    reported = repr(value)[:200]
    assert message.startswith(f"{name}={reported}"), message
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
    assert_refused(error, "rate", rate, op.fn, ones(op), rate, key=key)


@pytest.mark.parametrize(("rate", "error"), BAD_RATES, ids=str)
def test_bad_rate_of_the_mask_functions(rate, error):
    assert_refused(error, "rate", rate, keep_mask, KEY, rate, (3,))
    assert_refused(error, "rate", rate, apply_mask, X, X > 0, rate)


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


@plain_ops
@pytest.mark.parametrize(("x", "error"), BAD_X, ids=repr)
@pytest.mark.parametrize("key", [KEY, None], ids=["training", "evaluation"])
def test_bad_x(op, x, error, key):
    if op.name == "token_dropout" and getattr(x, "dtype", None) == np.int32:
        return  # ids: test_bad_arguments_of_each_op
    name = {"drop_connect": "weights", "embedding_dropout": "table"}.get(op.name, "x")
    assert_refused(error, name, x, op.fn, x, 0.1, key=key)


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
    reported = key.shape if name == "key.shape" else key
    if key is BAD_KEYS[-1][0]:
        reported = (2,)  # two raw keys are a batch of two
    assert_refused(error, name, reported, op.fn, ones(op), 0.1, key=key)


@ops
def test_batched_and_missing_keys(op):
    assert_refused(
        ValueError, "key.shape", (3,), op.fn, ones(op), 0.1, key=jax.random.split(KEY, 3)
    )
    with pytest.raises(TypeError, match="key"):
        op.fn(ones(op), 0.1)


@pytest.mark.parametrize(
    ("dims", "error", "reported"),
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
def test_bad_broadcast_dims(dims, error, reported):
    assert_refused(error, "broadcast_dims", reported, dropout, X, 0.1, key=KEY, broadcast_dims=dims)
    assert_refused(
        error, "broadcast_dims", reported, keep_mask, KEY, 0.1, X.shape, broadcast_dims=dims
    )


@pytest.mark.parametrize(
    ("keep", "error", "name", "reported"),
    [
        (np.ones((4, 6)), TypeError, "keep", None),
        (None, TypeError, "keep", None),
        ([True], TypeError, "keep", None),
        (np.ones(5, bool), ValueError, "keep.shape", (5,)),
        (np.ones((2, 4, 6), bool), ValueError, "keep.shape", (2, 4, 6)),
    ],
    ids=repr,
)
def test_bad_mask(keep, error, name, reported):
    assert_refused(error, name, keep if reported is None else reported, apply_mask, X, keep, 0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "name", "reported"),
    [
        ({}, TypeError, "rate", None),
        ({"rate": 0.1, "scale": 1.1}, TypeError, "scale", 1.1),
        ({"scale": True}, TypeError, "scale", True),
        ({"scale": np.ones(2, np.float32)}, ValueError, "scale.shape", (2,)),
    ],
    ids=repr,
)
def test_bad_scale(arguments, error, name, reported):
    assert_refused(error, name, reported, apply_mask, X, X > 0, **arguments)


@pytest.mark.parametrize(
    ("shape", "error"),
    [(5, TypeError), ("ab", TypeError), ((2.5,), TypeError), ((-1,), ValueError)],
)
def test_bad_shape(shape, error):
    assert_refused(error, "shape", shape, keep_mask, KEY, 0.1, shape)


def test_a_mask_beyond_the_counters_is_refused():
    assert_refused(ValueError, "shape", (2**33, 32), keep_mask, KEY, 0.1, (2**33, 32))
    assert_refused(ValueError, "shape", (2**35,), keep_mask, KEY, 0.1, (2**35,))


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
    assert_refused(TypeError, "key", 42, fold, 42, "block")
    assert_refused(ValueError, "key.shape", (2,), fold, jax.random.split(KEY), "block")


IDS = np.arange(6)
IMAGE = np.ones((2, 5, 5, 3), np.float32)
LOGITS = np.ones((4, 3), np.float32)
P3 = np.full((4, 3), 1 / 3, np.float32)
LABELS = np.array([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("error", "name", "reported", "call"),
    [
        (
            ValueError,
            "channel_axis",
            4,
            lambda k: dj.spatial_dropout(X, 0.1, channel_axis=4, key=k),
        ),
        (
            TypeError,
            "channel_axis",
            None,
            lambda k: dj.spatial_dropout(X, 0.1, channel_axis=None, key=k),
        ),
        (ValueError, "batch_axis", -3, lambda k: dj.spatial_dropout(X, 0.1, batch_axis=-3, key=k)),
        (ValueError, "batch_axis", 1, lambda k: dj.spatial_dropout(X, 0.1, batch_axis=1, key=k)),
        (ValueError, "time_axis", 2, lambda k: dj.locked_dropout(X, 0.1, time_axis=2, key=k)),
        (ValueError, "time_axis", -2, lambda k: dj.locked_dropout(X[0], 0.1, key=k)),
        (ValueError, "time_axis", 5, lambda k: dj.token_dropout(X, 0.1, time_axis=5, key=k)),
        (TypeError, "fill", 0, lambda k: dj.token_dropout(X, 0.1, fill=0, key=k)),
        (TypeError, "fill", None, lambda k: dj.token_dropout(IDS, 0.1, key=k)),
        (TypeError, "fill", 0.5, lambda k: dj.token_dropout(IDS, 0.1, fill=0.5, key=k)),
        (
            ValueError,
            "fill",
            300,
            lambda k: dj.token_dropout(IDS.astype(np.uint8), 0.1, fill=300, key=k),
        ),
        (ValueError, "rate", 1.5, lambda k: dj.token_dropout(IDS, 1.5, fill=0, key=k)),
        (ValueError, "head_axis", 2, lambda k: dj.head_dropout(X, 0.1, head_axis=2, key=k)),
        (ValueError, "table.shape", (), lambda k: dj.embedding_dropout(np.float32(1), 0.1, key=k)),
        (ValueError, "x.shape", (), lambda k: dj.drop_path(np.float32(1), 0.1, key=k)),
        (ValueError, "mode", "rows", lambda k: dj.drop_path(X, 0.1, mode="rows", key=k)),
        (TypeError, "mode", 0, lambda k: dj.drop_path(X, 0.1, mode=0, key=k)),
        (ValueError, "block_size", 0, lambda k: dj.drop_block(IMAGE, 0.1, 0, key=k)),
        (ValueError, "block_size", 6, lambda k: dj.drop_block(IMAGE, 0.1, 6, key=k)),
        (TypeError, "block_size", 2.0, lambda k: dj.drop_block(IMAGE, 0.1, 2.0, key=k)),
        (ValueError, "block_size", (2,), lambda k: dj.drop_block(IMAGE, 0.1, (2,), key=k)),
        (ValueError, "x.shape", (4, 6), lambda k: dj.drop_block(X, 0.1, 2, key=k)),
        (
            ValueError,
            "where.shape",
            (5,),
            lambda k: dj.masked_dropout(X, 0.1, np.ones(5, bool), key=k),
        ),
        (TypeError, "where", None, lambda k: dj.masked_dropout(X, 0.1, None, key=k)),
        (TypeError, "new", 1, lambda k: dj.zoneout(1, X, 0.1, key=k)),
        (TypeError, "old", 1, lambda k: dj.zoneout(X, 1, 0.1, key=k)),
        (ValueError, "old.shape", (6,), lambda k: dj.zoneout(X, X[0], 0.1, key=k)),
        (
            ValueError,
            "old.dtype",
            jnp.float16,
            lambda k: dj.zoneout(X, X.astype(np.float16), 0.1, key=k),
        ),
        (TypeError, "layer", 3, lambda k: dj.layer_drop(3, X, 0.1, key=k)),
        (TypeError, "head", 3, lambda k: dj.multi_sample_dropout(3, X, 0.1, samples=2, key=k)),
        (
            ValueError,
            "samples",
            0,
            lambda k: dj.multi_sample_dropout(np.sum, X, 0.1, samples=0, key=k),
        ),
        (
            TypeError,
            "samples",
            2.5,
            lambda k: dj.multi_sample_dropout(np.sum, X, 0.1, samples=2.5, key=k),
        ),
        (ValueError, "shape", (), lambda k: dj.dropkey_bias((), 0.1, key=k)),
        (
            TypeError,
            "dtype",
            jnp.int32,
            lambda k: dj.dropkey_bias((2,), 0.1, dtype=jnp.int32, key=k),
        ),
        (TypeError, "rate_logit", "x", lambda k: dj.concrete_dropout(X, "x", key=k)),
        (ValueError, "rate_logit.shape", (2,), lambda k: dj.concrete_dropout(X, np.ones(2), key=k)),
        (
            ValueError,
            "temperature",
            0.0,
            lambda k: dj.concrete_dropout(X, 0.0, temperature=0.0, key=k),
        ),
        (
            TypeError,
            "temperature",
            "hot",
            lambda k: dj.concrete_dropout(X, 0.0, temperature="hot", key=k),
        ),
        (
            ValueError,
            "log_alpha.shape",
            (5,),
            lambda k: dj.variational_dropout(X, np.ones(5), key=k),
        ),
        (TypeError, "log_alpha", None, lambda k: dj.variational_dropout(X, None, key=k)),
        (TypeError, "log_alpha", True, lambda k: dj.variational_dropout_kl(True)),
        (ValueError, "logits_b.shape", (3,), lambda k: dj.r_drop_divergence(LOGITS, LOGITS[0])),
        (TypeError, "predict", 3, lambda k: dj.mc_dropout(3, KEY, 2)),
        (TypeError, "key", None, lambda k: dj.mc_dropout(lambda k: 1, None, 2)),
        (ValueError, "samples", 0, lambda k: dj.mc_dropout(lambda k: 1, KEY, 0)),
        (ValueError, "batch_size", 0, lambda k: dj.mc_dropout(lambda k: 1, KEY, 2, batch_size=0)),
        (ValueError, "predictions.shape", (3,), lambda k: dj.predictive_entropy(P3[0])),
        (TypeError, "labels", None, lambda k: calibration.brier_score(P3, None)),
        (ValueError, "labels.shape", (3,), lambda k: calibration.brier_score(P3, LABELS[:3])),
        (ValueError, "labels", LABELS + 1, lambda k: calibration.brier_score(P3, LABELS + 1)),
        (
            ValueError,
            "bins",
            0,
            lambda k: calibration.expected_calibration_error(P3, LABELS, bins=0),
        ),
        (
            ValueError,
            "binning",
            "size",
            lambda k: calibration.expected_calibration_error(P3, LABELS, binning="size"),
        ),
        (
            ValueError,
            "positive.shape",
            (1,),
            lambda k: calibration.auroc(P3[:, 0], np.ones(1, bool)),
        ),
        (TypeError, "positive", LABELS, lambda k: calibration.auroc(P3[:, 0], LABELS)),
        (ValueError, "n_layer", 0, lambda k: dj.linear_over_depth(0.1, 0)),
        (ValueError, "rate", 2.0, lambda k: dj.linear_over_depth(2.0, 3)),
        (ValueError, "until", -1, lambda k: dj.early_dropout(0.1, -1)),
        (TypeError, "start", 1.5, lambda k: dj.late_dropout(0.1, 1.5)),
        (ValueError, "rate", 1.0, lambda k: dj.curriculum_dropout(1.0, 0.1)),
        (TypeError, "dtype", None, lambda k: dj.dropkey_bias((2,), 0.1, dtype=None, key=k)),
        (ValueError, "rate", 2e-8, lambda k: dj.drop_block(IMAGE, 2e-8, 5, key=k)),
        (TypeError, "rate", KEY, lambda k: dj.dropout(X, KEY, key=k)),
        (ValueError, "gamma", -1, lambda k: dj.curriculum_dropout(0.1, -1)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.parametrize("key", [KEY, None], ids=["training", "evaluation"])
def test_bad_arguments_of_each_op(error, name, reported, call, key):
    """At evaluation too: a mistake shows before the first training step."""
    with pytest.raises(error) as info:
        call(key)
    message = str(info.value)
    if name.endswith(("shape", "dtype")) or not isinstance(reported, np.ndarray | type):
        reported = repr(np.dtype(reported)) if name.endswith(".dtype") else repr(reported)
        assert message.startswith(f"{name}={reported} is not allowed: {name} must be "), message
    else:
        assert message.startswith(f"{name}="), message
    assert ". " in message.split(" must be ", 1)[1], f"no remedy in: {message}"
