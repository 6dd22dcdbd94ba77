"""Integers of every dtype: known ones are checked, traced ones do not wrap."""

# Many of these calls are wrong on purpose.
# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from marks import slow

import dropout_jax as dj
from dropout_jax import _validation, calibration, reference

pytestmark = pytest.mark.usefixtures("without_type_checker")

KEY = jax.random.key(0)
DTYPES = ["int4", "uint4", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32))]
WIDE = ["int64", "uint64"]
# A narrow and a wide one for every change; the others are slow.
FAST = ("int4", "int64")
all_dtypes = pytest.mark.parametrize(
    "dtype", [name if name in FAST else slow(name) for name in (*DTYPES, *WIDE)]
)
X64 = pytest.mark.parametrize("x64", [False, slow(True)], ids=["x32", "x64"])


def integers(values, dtype):
    """A NumPy array of an integer dtype, of those of ml_dtypes too."""
    return np.array(values).astype(getattr(ml_dtypes, dtype, dtype))


def ones(*shape):
    return np.ones(shape, np.float32)


SCORES = {
    "brier": calibration.brier_score,
    "likelihood": calibration.negative_log_likelihood,
    "calibration": calibration.expected_calibration_error,
    "calibration by mass": lambda p, y: calibration.expected_calibration_error(
        p, y, binning="mass"
    ),
    "temperature": calibration.fit_temperature,
}
all_scores = pytest.mark.parametrize("score", SCORES.values(), ids=list(SCORES))


@all_scores
@X64
@all_dtypes
def test_labels_of_every_dtype_are_those_of_int32(score, x64, dtype):
    """300 classes, more than 8 bits count."""
    probabilities = np.asarray(jax.nn.softmax(jax.random.normal(KEY, (4, 300))))
    labels = np.array([0, 5, 7, 3])
    expected = score(probabilities, labels.astype(np.int32))
    assert jnp.isfinite(expected)
    with jax.enable_x64(x64):
        given = integers(labels, dtype)
        for call in (score, jax.jit(score)):
            np.testing.assert_allclose(call(probabilities, given), expected, rtol=1e-6)
            np.testing.assert_allclose(call(probabilities, jnp.asarray(given)), expected, rtol=1e-6)
        closed_over = jax.jit(lambda p: score(p, given))
        np.testing.assert_allclose(closed_over(probabilities), expected, rtol=1e-6)


def test_likelihood_of_256_classes_with_uint8_labels():
    random = np.random.default_rng(0)
    logits = random.standard_normal((100, 256)).astype(np.float32)
    probabilities, labels = jax.nn.softmax(logits), random.integers(0, 256, 100)
    expected = -np.log(np.asarray(probabilities)[range(100), labels]).mean()
    got = calibration.negative_log_likelihood(probabilities, labels.astype(np.uint8))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@all_scores
@pytest.mark.parametrize(
    "label", [np.int8(-1), np.uint16(300), np.int64(2**32), np.uint64(2**63)], ids=repr
)
def test_a_label_that_is_no_class_is_refused_or_nan(score, label):
    """2^32 is class 0 when it is cut to 32 bits."""
    probabilities, labels = ones(2, 300) / 300, np.array([0, label], label.dtype)
    with pytest.raises(ValueError, match=r"labels=.* is not allowed: .* from 0 to 299.*\. \w+"):
        score(probabilities, labels)
    with jax.enable_x64(True):
        assert jnp.isnan(jax.jit(score)(probabilities, jnp.asarray(labels)))


OFFSETS = {
    "keep_mask": lambda n: dj.keep_mask(KEY, 0.5, (4, 16), row_offset=n),
    "dropout": lambda n: dj.dropout(ones(4, 16), 0.5, key=KEY, row_offset=n),
    "drop_path": lambda n: dj.drop_path(ones(40, 16), 0.5, key=KEY, row_offset=n),
    "attention": lambda n: dj.dot_product_attention(
        *[ones(4, 2, 2, 4)] * 3, dropout_rate=0.5, dropout_key=KEY, dropout_row_offset=n
    ),
}
all_offsets = pytest.mark.parametrize("call", OFFSETS.values(), ids=list(OFFSETS))


@all_offsets
@all_dtypes
def test_offsets_of_every_dtype_are_the_same(call, dtype):
    offset = 7 if "4" in dtype and "64" not in dtype else 100
    expected, given = call(offset), integers(offset, dtype)
    np.testing.assert_array_equal(call(given), expected)
    np.testing.assert_array_equal(call(jnp.asarray(given)), expected)
    np.testing.assert_array_equal(jax.jit(call)(jnp.asarray(given)), expected)
    assert (np.asarray(expected) != np.asarray(call(0))).any()


@all_offsets
@pytest.mark.parametrize(
    "offset",
    [-1, np.int8(-1), jnp.int32(-1), jnp.asarray(-1, jnp.int4), 2**32, np.int64(2**32 + 5)],
    ids=repr,
)
def test_offsets_out_of_range_are_refused_whatever_their_dtype(call, offset):
    with pytest.raises(ValueError, match=r"row_offset=.* must be an integer from 0 to .*\. \w+"):
        call(offset)


@all_offsets
@pytest.mark.parametrize("offset", [True, jnp.array(True), 1.0, jnp.float32(1), np.arange(2), "1"])
def test_offsets_that_are_no_integer_are_refused(call, offset):
    with pytest.raises(TypeError, match=r"row_offset=.* must be an integer from 0 to .*\. \w+"):
        call(offset)


@pytest.mark.parametrize("shape", [(4, 16), (4, 64), (7,), (2, 3, 5, 40), (1, 1), (0, 16), (3, 0)])
def test_the_largest_offset_is_allowed_and_the_next_one_is_not(shape):
    """The message names the largest; an offset of 2^28 rows of 16 elements would equal 0."""
    with pytest.raises(ValueError, match="row_offset") as info:
        dj.keep_mask(KEY, 0.5, shape, row_offset=2**40)
    largest = int(str(info.value).split("an integer from 0 to ")[1].split()[0])
    assert 0 < largest < 2**32
    assert dj.keep_mask(KEY, 0.5, shape, row_offset=largest).shape == shape
    with pytest.raises(ValueError, match="its own key"):
        dj.keep_mask(KEY, 0.5, shape, row_offset=largest + 1)


def test_an_offset_that_would_wrap_the_elements_of_a_flat_mask_is_refused():
    first = dj.keep_mask(KEY, 0.5, (4, 16), row_offset=0)
    try:
        far = dj.keep_mask(KEY, 0.5, (4, 16), row_offset=2**28)
    except ValueError:
        return
    assert (far != first).any()


@all_dtypes
def test_lengths_of_every_dtype_are_those_of_int32(dtype):
    q = jnp.asarray(np.random.default_rng(0).standard_normal((2, 300, 1, 4)), jnp.float32)
    lengths = np.array([3, 7])

    def attend(lengths, implementation):
        return dj.dot_product_attention(
            *[q] * 3,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation=implementation,
        )

    for implementation in ("naive", "blockwise"):
        expected = attend(lengths.astype(np.int32), implementation)
        given = integers(lengths, dtype)
        np.testing.assert_array_equal(attend(given, implementation), expected)
        traced = jax.jit(attend, static_argnums=1)(jnp.asarray(given), implementation)
        np.testing.assert_allclose(traced, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [np.int64(2**32), np.uint32(2**32 - 1), np.uint64(2**63)])
def test_a_length_beyond_the_array_is_the_whole_array(length):
    q = ones(1, 16, 1, 4)
    got = dj.dot_product_attention(q, q, q, query_seq_lengths=np.array([length]))
    np.testing.assert_array_equal(got, dj.dot_product_attention(q, q, q))


@pytest.mark.parametrize("name", ["query_seq_lengths", "key_value_seq_lengths"])
@pytest.mark.parametrize("dtype", ["int8", "int32", "int64"])
def test_a_negative_length_is_refused(name, dtype):
    q = ones(1, 16, 1, 4)
    with pytest.raises(ValueError, match=rf"{name}=.* of at least 0, .*\. Pass 0"):
        dj.dot_product_attention(q, q, q, **{name: np.array([-1], dtype)})


@all_dtypes
def test_windows_of_every_dtype_are_those_of_python(dtype):
    q = np.random.default_rng(0).standard_normal((1, 9, 1, 4)).astype(np.float32)
    expected = dj.dot_product_attention(q, q, q, local_window_size=(2, 0))
    size, zero = integers(2, dtype), integers(0, dtype)
    for window in ((size, zero), (jnp.asarray(size), 0), (size[()], zero[()])):
        got = dj.dot_product_attention(q, q, q, local_window_size=window)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("window", "error"),
    [
        (True, TypeError),
        ((1, jnp.array(True)), TypeError),
        (1.0, TypeError),
        (-1, ValueError),
        ((0, jnp.int32(-1)), ValueError),
        (np.int8(-1), ValueError),
        ((1, 2, 3), ValueError),
    ],
    ids=repr,
)
def test_windows_out_of_range_are_refused(window, error):
    with pytest.raises(error, match=r"local_window_size=.* is not allowed: .*\. \S+"):
        dj.dot_product_attention(*[ones(1, 9, 1, 4)] * 3, local_window_size=window)


SCHEDULES = {
    "early": dj.early_dropout(0.5, 1000),
    "early, far": dj.early_dropout(0.5, 2**40),
    "late": dj.late_dropout(0.5, 1000),
    "late, far": dj.late_dropout(0.5, 2**40),
    "curriculum": dj.curriculum_dropout(0.5, 0.01),
}
all_schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))


@all_schedules
@X64
@pytest.mark.parametrize("dtype", [*DTYPES, *WIDE, "float16", "bfloat16", "float8_e4m3fn"])
def test_steps_of_every_dtype_are_those_of_python(schedule, x64, dtype):
    with jax.enable_x64(x64):
        step = integers(6, dtype)
        for given in (step, step[()], jnp.asarray(step), step.reshape(1)):
            got = schedule(given)
            assert got.dtype == jnp.float32
            np.testing.assert_allclose(got, schedule(6), rtol=1e-6)
        np.testing.assert_allclose(jax.jit(schedule)(jnp.asarray(step)), schedule(6), rtol=1e-6)


def test_steps_beyond_32_bits_and_beyond_the_precision_of_half():
    assert dj.early_dropout(0.5, 1000)(np.int64(2**32 + 5)) == 0  # cut to 32 bits it is step 5
    assert dj.late_dropout(0.5, 2**40)(np.int64(2**40)) == 0.5
    assert dj.late_dropout(0.5, 2**40)(2**40 - 1) == 0
    assert dj.early_dropout(0.5, 2049)(np.float16(2048)) == 0.5  # 2049 is 2048 in float16
    assert jax.jit(dj.early_dropout(0.5, 2049))(np.float16(2048)) == 0.5
    assert dj.early_dropout(0.5, 1000)(10**400) == 0


@all_schedules
@pytest.mark.parametrize(
    ("step", "error"),
    [
        (-1, ValueError),
        (np.int8(-1), ValueError),
        (jnp.int32(-1), ValueError),
        (np.arange(-1, 3), ValueError),
        (float("nan"), ValueError),
        (True, TypeError),
        (np.True_, TypeError),
        (None, TypeError),
        ("1", TypeError),
        (1j, TypeError),
    ],
    ids=repr,
)
def test_steps_out_of_range_are_refused(schedule, step, error):
    with pytest.raises(error, match=r"(?s)step=.* must be a number of steps of at least 0.*\. \w+"):
        schedule(step)


@all_dtypes
def test_path_parts_of_every_dtype_are_those_of_python(dtype):
    number, given = 5, integers(5, dtype)
    for part in (given, given[()], jnp.asarray(given)):
        assert dj.fold(KEY, part) == dj.fold(KEY, number)
    assert jax.jit(lambda n: dj.fold(KEY, n))(jnp.asarray(given)) == dj.fold(KEY, number)


@pytest.mark.parametrize(
    ("part", "error", "remedy"),
    [
        (-1, ValueError, "str"),
        (jnp.int32(-1), ValueError, "str"),
        (jnp.asarray(-1, jnp.int4), ValueError, "str"),
        (np.int64(2**32), ValueError, "n >> 32"),
        (np.uint64(2**63), ValueError, "n >> 32"),
        (True, TypeError, "Name the site"),
        (jnp.array(True), TypeError, "Name the site"),
        (1.0, TypeError, "Name the site"),
    ],
    ids=repr,
)
def test_path_parts_out_of_range_are_refused(part, error, remedy):
    with pytest.raises(error, match=f"path=.* is not allowed: .*{remedy}"):
        dj.fold(KEY, part)


COUNTS = {
    "samples": (lambda n: dj.mc_dropout(lambda key: jnp.ones(()), KEY, n).shape, 2**32),
    "batch_size": (
        lambda n: dj.mc_dropout(lambda key: jnp.ones(()), KEY, 3, batch_size=n).shape,
        None,
    ),
    "samples of a head": (
        lambda n: dj.multi_sample_dropout(jnp.sum, ones(3), 0.5, samples=n, key=KEY),
        2**32,
    ),
    "bins": (
        lambda n: calibration.expected_calibration_error(ones(3, 2) / 2, np.arange(3) % 2, bins=n),
        2**24,
    ),
    "features": (
        lambda n: dj.concrete_dropout_penalty(
            ones(3, 2), 0.0, weight_scale=1.0, dropout_scale=1.0, features=n
        ),
        None,
    ),
    "n_layer": (lambda n: dj.linear_over_depth(0.5, n), None),
    "until": (lambda n: dj.early_dropout(0.5, n)(1), None),
    "start": (lambda n: dj.late_dropout(0.5, n)(1), None),
    "block_size": (lambda n: dj.drop_block(ones(1, 4, 4, 1), 0.5, n, key=KEY), 4),
    "axis": (lambda n: dj.locked_dropout(ones(2, 2, 2, 2), 0.5, time_axis=n, key=KEY), 3),
    "broadcast_dims": (
        lambda n: dj.dropout(ones(2, 2, 2, 2), 0.5, broadcast_dims=(n,), key=KEY),
        3,
    ),
}


@pytest.mark.parametrize(("call", "largest"), COUNTS.values(), ids=list(COUNTS))
def test_counts_of_every_dtype_are_those_of_python(call, largest):
    expected = call(2)
    for dtype in (*DTYPES, *WIDE):
        np.testing.assert_array_equal(call(integers(2, dtype)), expected)
        np.testing.assert_array_equal(call(jnp.asarray(integers(2, dtype))), expected)
    for value in (True, np.True_, jnp.array(True), 2.0, np.float32(2), "2"):
        with pytest.raises(TypeError, match=r"is not allowed: .*\. \w+"):
            call(value)
    for value in (-9, np.int8(-9), jnp.int32(-9)):
        with pytest.raises(ValueError, match=r"is not allowed: .*\. \w+"):
            call(value)
    if largest is not None:
        with pytest.raises(ValueError, match=r"is not allowed: .*\. \w+"):
            call(np.int64(largest + 1))


def test_a_number_of_features_beyond_32_bits():
    got = dj.concrete_dropout_penalty(
        ones(3, 2), 0.0, weight_scale=1.0, dropout_scale=1.0, features=2**40
    )
    np.testing.assert_allclose(got, 12 - 2**40 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_of_every_dtype(dtype):
    ids = integers(np.arange(1, 8), dtype)
    got = dj.token_dropout(ids, 0.5, fill=0, key=KEY)
    expected = reference.token_dropout(ids, 0.5, fill=0, key=jax.random.key_data(KEY))
    assert got.dtype == ids.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(got).astype(int), expected.astype(int))
    limit = int(jnp.iinfo(ids.dtype).max)
    with pytest.raises(ValueError, match=f"fill={limit + 1} .* from .* to {limit}. The largest"):
        dj.token_dropout(ids, 0.5, fill=limit + 1, key=KEY)


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_an_integer_that_no_float_holds_is_refused(value):
    with pytest.raises(ValueError, match=r"temperature=.* is not allowed"):
        dj.concrete_dropout(ones(3), 0.0, temperature=value, key=KEY)
    with pytest.raises(ValueError, match=r"scale=.* is not allowed"):
        dj.dot_product_attention(*[ones(1, 2, 1, 4)] * 3, scale=value)


@all_dtypes
def test_saturation_to_int32_at_both_ends(dtype):
    limits = jnp.iinfo(jnp.dtype(getattr(ml_dtypes, dtype, dtype)))
    ends = [int(limits.min), 0, int(limits.max)]
    expected = np.clip(np.array(ends, object), -(2**31), 2**31 - 1).astype(np.int32)
    given = np.array(ends, dtype) if dtype[-1] != "4" or "64" in dtype else integers(ends, dtype)
    np.testing.assert_array_equal(_validation._saturate_to_int32(given), expected)
    with jax.enable_x64(True):
        traced = jax.jit(_validation._saturate_to_int32)(jnp.asarray(given))
    np.testing.assert_array_equal(traced, expected)
