"""Every floating dtype, weak types, excluded classes, certainty, empty arrays: op and oracle."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from marks import ONE_OP_A_FAMILY, one_op_a_family, slow
from op_registry import sample
from scipy import special

import dropout_jax as dj
from dropout_jax import calibration, reference

# jaxtyping does not know every float8, and some of these calls are wrong on purpose.
pytestmark = pytest.mark.usefixtures("without_type_checker")

KEY = jax.random.key(3)
WORDS = np.asarray(jax.random.key_data(KEY))
INF = np.inf
NARROW = ["float8_e4m3fn"]
OTHERS = [
    "float8_e5m2",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
]
UNUSABLE = ["float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e8m0fnu"]
narrow_dtypes = pytest.mark.parametrize("dtype", [*NARROW, *map(slow, OTHERS)])
unusable_dtypes = pytest.mark.parametrize("dtype", UNUSABLE)

STACK = np.array(
    [[[0.5, 0.5], [0.25, 0.75]], [[1, 0], [0.5, 0.5]]], np.float32
)  # exact in every dtype
METRICS = {
    "brier": lambda p: calibration.brier_score(p[0], np.array([0, 1])),
    "likelihood": lambda p: calibration.negative_log_likelihood(p[0], np.array([0, 1])),
    "calibration": lambda p: calibration.expected_calibration_error(p[0], np.array([0, 1])),
    "calibration by mass": lambda p: calibration.expected_calibration_error(
        p[0], np.array([0, 1]), binning="mass"
    ),
    "auroc": lambda p: calibration.auroc(p[0, :, 0], np.array([True, False])),
    "temperature": lambda p: calibration.fit_temperature(p.reshape(4, 2), np.array([0, 0, 0, 1])),
    "mean": lambda p: dj.predictive_mean_and_std(p)[0],
    "deviation": lambda p: dj.predictive_mean_and_std(p)[1],
    "predictive_entropy": dj.predictive_entropy,
    "expected_entropy": dj.expected_entropy,
    "mutual_information": dj.mutual_information,
    "variation_ratio": dj.variation_ratio,
    "r_drop_divergence": lambda p: dj.r_drop_divergence(p[0], p[1]),
    "penalty": lambda p: dj.concrete_dropout_penalty(
        p[0], p[0, 0, :1].reshape(()), weight_scale=0.5, dropout_scale=1.0
    ),
}
all_metrics = pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
LEARNED = {
    "concrete_dropout": lambda x, key: dj.concrete_dropout(x, -0.5, key=key),
    "variational_dropout": lambda x, key: dj.variational_dropout(x, -0.5, key=key),
}


def of_dtype(x, dtype):
    return np.asarray(x).astype(getattr(ml_dtypes, dtype, dtype))


@ONE_OP_A_FAMILY
@narrow_dtypes
def test_float8_is_the_oracles_bit_for_bit(op, dtype):
    x = of_dtype(sample(op.small), dtype)
    for rate in (0.3, 1.0):
        got = op.fn(x, rate, key=KEY)
        assert got.dtype == x.dtype
        expected = op.oracle(x, rate, key=WORDS).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(got).astype(np.float32), expected)
    assert op.fn(x, 0.3, key=None).dtype == x.dtype


# The rows that are left out compute with x before the op sees it: they are in the next test.
@one_op_a_family("zoneout", "masked_dropout")
@unusable_dtypes
def test_a_dtype_without_zero_or_nan_is_refused_and_the_remedy_works(op, dtype):
    x = of_dtype(np.ones(op.small), dtype)
    for key in (KEY, None):
        with pytest.raises(TypeError, match=rf"holds 0 and NaN, not {dtype}.*astype"):
            op.fn(x, 0.3, key=key)
    op.fn(x.astype(jnp.float32), 0.3, key=KEY)


@unusable_dtypes
def test_the_other_functions_refuse_it_too(dtype):
    x, where = of_dtype(np.ones((2, 2, 2)), dtype), np.ones((2, 2, 2), bool)
    for call in (
        lambda: dj.zoneout(x, x, 0.3, key=KEY),
        lambda: dj.masked_dropout(x, 0.3, where, key=KEY),
        lambda: dj.apply_mask(x, where, 0.3),
        lambda: dj.variational_dropout_kl(x),
        lambda: dj.dot_product_attention(x, x, x),
        *(functools.partial(fn, x, KEY) for fn in LEARNED.values()),
        *(functools.partial(metric, x) for metric in METRICS.values()),
    ):
        with pytest.raises(TypeError, match=rf"holds 0 and NaN, not {dtype}"):
            call()


@all_metrics
@pytest.mark.parametrize("dtype", [*NARROW, *map(slow, [*OTHERS, "bfloat16", "float16"])])
def test_metrics_of_narrow_dtypes_are_those_of_float32(metric, dtype):
    got = metric(of_dtype(STACK, dtype))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, metric(STACK), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@all_metrics
def test_metrics_of_float64_are_float64(metric):
    with jax.enable_x64(True):
        got = metric(STACK.astype(np.float64))
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, metric(STACK), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [*NARROW, *OTHERS, "bfloat16", "float16", "float32"])
def test_the_variational_penalty_is_rounded_once(dtype):
    log_alpha = of_dtype([-6.0, -1.5, 0.0, 0.25, 2.0], dtype)
    got = dj.variational_dropout_kl(log_alpha)
    exact = reference.variational_dropout_kl(log_alpha.astype(np.float64))
    step = float(jnp.finfo(dtype).eps)  # the subnormals of the narrowest have steps of eps / 2
    np.testing.assert_allclose(np.asarray(got).astype(np.float64), exact, rtol=step, atol=step / 4)


@pytest.mark.parametrize("dtype", [*NARROW, *OTHERS, "bfloat16", "float16", "float32"])
def test_dropkey_needs_an_infinity(dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    if dtype.name in ("float8_e4m3", "float8_e3m4", "float8_e5m2") or dtype.itemsize > 1:
        bias = np.asarray(dj.dropkey_bias((2, 40), 0.5, key=KEY, dtype=dtype))
        expected = reference.dropkey_bias((2, 40), 0.5, key=WORDS)
        np.testing.assert_array_equal(bias.astype(np.float32), expected)
        return
    for key in (KEY, None):
        with pytest.raises(TypeError, match=r"dtype=.* with an infinity, not .*\. Pass jnp"):
            dj.dropkey_bias((2, 40), 0.5, key=key, dtype=dtype)


@pytest.mark.slow
@ONE_OP_A_FAMILY
@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_a_weak_type_is_kept_in_both_modes(op, x64):
    with jax.enable_x64(x64):
        strong = jnp.asarray(sample(op.small), float)
        weak = jnp.broadcast_to(jnp.asarray(1.0), op.small)
        if op.name in ("zoneout", "masked_dropout"):  # the rows need a NumPy-like x
            strong = weak.astype(weak.dtype)
        for x in (strong, weak):
            for rate in (0.0, 0.3, 1.0):
                kinds = {
                    (y.dtype, y.weak_type)
                    for y in (
                        op.fn(x, rate, key=KEY),
                        op.fn(x, rate, key=None),
                        jax.jit(op.fn)(x, rate, key=KEY),
                        jax.jit(op.fn)(x, rate, key=None),
                    )
                }
                assert kinds == {(x.dtype, x.weak_type)}


@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_weak_types_of_the_learned_ops_of_ids_and_of_layers(x64):
    with jax.enable_x64(x64):
        weak, ids = jnp.asarray(1.0), jnp.asarray(3)

        def strengthen(x):
            return x.astype(x.dtype)

        for call, x, is_weak in (
            (lambda x, key: dj.concrete_dropout(x, -0.5, key=key), weak, True),
            (lambda x, key: dj.variational_dropout(x, -0.5, key=key), weak, True),
            (lambda x, key: dj.drop_path(x[None], 0.5, key=key, scale=False), weak, True),
            (lambda x, key: dj.token_dropout(x, 0.5, fill=0, key=key), ids, True),
            (lambda x, key: dj.layer_drop(strengthen, x, 0.5, key=key), weak, False),
            (lambda x, key: dj.layer_drop(lambda x: 2 * x, x, 0.5, key=key), weak, True),
        ):
            for key in (KEY, None):
                y = call(x, key)
                assert (y.dtype, y.weak_type) == (x.dtype, is_weak)


def test_a_weak_result_promotes_as_x_does_and_has_a_gradient():
    x = jnp.asarray(2.0)
    y = dj.dropout(x, 0.0001, key=KEY)
    assert (y + jnp.bfloat16(1)).dtype == (x + jnp.bfloat16(1)).dtype == jnp.bfloat16
    slope = jax.grad(lambda x: dj.dropout(x, 0.5, key=KEY))(x)
    assert slope == dj.dropout(jnp.float32(1), 0.5, key=KEY)


A_LOGITS = {
    "excluded in both": ([1, 2, -INF], [2, 1, -INF]),
    "excluded in one": ([1, 2, -INF], [2, 1, 0]),
    "excluded where the other underflows": ([0, -INF], [0, -300]),
    "certain in both": ([0, -INF], [0, -INF]),
    "certain of different classes": ([0, -INF], [-INF, 0]),
    "masked in both": ([-INF, -INF], [-INF, -INF]),
    "masked in one": ([-INF, -INF], [0, 1]),
    "one class": ([3], [-5]),
    "far apart": ([0, 80], [80, 0]),
    "nan": ([np.nan, 1], [0, 1]),
    "inf": ([INF, 1], [0, 1]),
}


@pytest.mark.parametrize(("a", "b"), A_LOGITS.values(), ids=list(A_LOGITS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_divergence_at_the_edges_is_the_oracles(a, b, dtype):
    a, b = of_dtype(a, dtype), of_dtype(b, dtype)
    expected = reference.r_drop_divergence(a, b)
    for call in (dj.r_drop_divergence, jax.jit(dj.r_drop_divergence)):
        np.testing.assert_allclose(call(a, b), expected, rtol=1e-5)
        np.testing.assert_allclose(call(b, a), expected, rtol=1e-5)


def test_divergence_by_hand():
    assert dj.r_drop_divergence(jnp.array([0, -INF]), jnp.array([0.0, -300.0])) == INF
    assert dj.r_drop_divergence(jnp.full(3, -INF), jnp.full(3, -INF)) == 0
    assert dj.r_drop_divergence(jnp.zeros((0, 4)), jnp.zeros((0, 4))).shape == (0,)
    a, b = sample((4, 6)), sample((4, 6), seed=1)
    a[:, 2:4] = b[:, 2:4] = -INF
    visible = [0, 1, 4, 5]
    expected = reference.r_drop_divergence(a[:, visible], b[:, visible])
    np.testing.assert_allclose(dj.r_drop_divergence(a, b), expected, rtol=1e-5)
    slopes = jax.grad(lambda a, b: dj.r_drop_divergence(a, b).sum(), (0, 1))(a, b)
    for slope in slopes:
        assert jnp.isfinite(slope).all()
        np.testing.assert_array_equal(slope[:, 2:4], 0)


def test_masked_rows_of_the_divergence_have_no_gradient():
    a = jnp.array([[1.0, 2.0], [-INF, -INF]])
    slope = jax.grad(lambda a: dj.r_drop_divergence(a, a[:, ::-1]).sum())(a)
    np.testing.assert_array_equal(slope[1], 0)
    assert jnp.isfinite(slope).all()


MEASURES = {
    "predictive_entropy": dj.predictive_entropy,
    "expected_entropy": dj.expected_entropy,
    "mutual_information": dj.mutual_information,
}


@pytest.mark.parametrize(
    "measure",
    [dj.mutual_information, slow(dj.predictive_entropy), slow(dj.expected_entropy)],
)
def test_a_class_excluded_by_minus_infinity_changes_no_measure_and_no_gradient(measure):
    logits = jnp.asarray(sample((5, 3, 4)))
    excluded = jnp.concatenate([logits, jnp.full((5, 3, 1), -INF)], -1)

    def of(logits):
        return measure(jax.nn.softmax(logits)).sum()

    np.testing.assert_allclose(of(excluded), of(logits), rtol=1e-5)
    slope = jax.grad(of)(excluded)
    np.testing.assert_allclose(slope[..., :4], jax.grad(of)(logits), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(slope[..., 4], 0)


@pytest.mark.slow
def test_certainty_and_one_class():
    certain = np.eye(3, dtype=np.float32)[[0, 1, 2]]
    stack, labels = np.stack([certain] * 4), np.arange(3)
    one = np.ones((2, 3, 1), np.float32)
    for measure in (*MEASURES.values(), dj.variation_ratio):
        for predictions in (stack, one):
            np.testing.assert_array_equal(measure(predictions), 0)
            slope = jax.grad(lambda p: measure(p).sum())(jnp.asarray(predictions))  # noqa: B023
            assert jnp.isfinite(slope).all()
    none = np.zeros(3, int)
    for score in (
        calibration.brier_score,
        calibration.negative_log_likelihood,
        calibration.expected_calibration_error,
    ):
        assert score(certain, labels) == score(one[0], none) == 0
    assert calibration.negative_log_likelihood(certain, labels[::-1]) == INF
    assert calibration.brier_score(certain[:1], np.array([1])) == 2
    assert calibration.expected_calibration_error(certain, labels[[1, 2, 0]]) == 1


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_empty_bins_add_nothing(binning):
    probabilities = np.array([[1, 0], [0.75, 0.25], [0.5, 0.5], [0, 1]], np.float32)
    labels = np.array([0, 0, 1, 1])
    got = calibration.expected_calibration_error(
        probabilities, labels, bins=100_000, binning=binning
    )
    np.testing.assert_allclose(
        got, (0.25 + 0.5) / 4, rtol=1e-6
    )  # every example has a bin of its own
    if binning == "width":
        one_each = calibration.expected_calibration_error(probabilities, labels, bins=2)
        np.testing.assert_allclose(one_each, (abs(0.25) + 0.5) / 4, rtol=1e-6)


def test_no_examples_give_nan_and_no_classes_are_refused():
    none, labels = np.zeros((0, 3), np.float32), np.zeros(0, int)
    for score in (
        calibration.brier_score,
        calibration.negative_log_likelihood,
        calibration.expected_calibration_error,
    ):
        assert jnp.isnan(score(none, labels))
        with pytest.raises(ValueError, match=r"probabilities\.shape=\(2, 0\) .*at least 1 class"):
            score(np.zeros((2, 0), np.float32), np.zeros(2, int))
    for measure in (*MEASURES.values(), dj.variation_ratio):
        assert measure(np.zeros((4, 0, 3), np.float32)).shape == (0,)
        with pytest.raises(ValueError, match=r"predictions\.shape=\(4, 2, 0\) .*at least 1 class"):
            measure(np.zeros((4, 2, 0), np.float32))
        with pytest.raises(ValueError, match=r"predictions\.shape=\(0, 2, 3\) .*at least 1 sample"):
            measure(np.zeros((0, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"logits_a\.shape=\(2, 0\) .*at least 1 class"):
        dj.r_drop_divergence(np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32))
    assert jnp.isnan(calibration.auroc(np.zeros(0, np.float32), np.zeros(0, bool)))


@pytest.mark.slow
@all_metrics
def test_nan_is_never_quiet(metric):
    assert jnp.isnan(metric(STACK * np.float32(np.nan))).all()


def test_a_temperature_for_an_excluded_label_is_nan():
    logits = np.array([[0, 1, -INF], [2, 0, 1]], np.float32)
    assert jnp.isfinite(calibration.fit_temperature(logits, np.array([0, 1])))
    assert jnp.isnan(calibration.fit_temperature(logits, np.array([2, 1])))


@pytest.mark.parametrize("logit", [-INF, -1000.0, -50.0, 50.0, 1000.0, INF])
def test_concrete_dropout_at_rates_of_zero_and_one(logit):
    x = sample((5, 40))
    got = dj.concrete_dropout(x, logit, key=KEY)
    expected = reference.concrete_dropout(x, logit, key=WORDS)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got, x if logit < 0 else 0 * x, rtol=1e-4, atol=1e-6)
    slopes = jax.grad(lambda x, a: dj.concrete_dropout(x, a, key=KEY).sum(), (0, 1))(x, logit)
    assert all(jnp.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("logit", [-INF, -1000.0, -3.0, 3.0, 80.0, 1000.0, INF])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_penalty_at_rates_of_zero_and_one(logit, weight):
    weights = np.full((3, 2), weight, np.float32)
    got, expected = (
        penalty(weights, logit, weight_scale=0.5, dropout_scale=2.0)
        for penalty in (dj.concrete_dropout_penalty, reference.concrete_dropout_penalty)
    )
    if expected > 3e38:
        expected = INF  # in float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-12)
    if np.isinf(logit):
        np.testing.assert_allclose(got, 0.75 if logit < 0 else INF) if weight else None
        assert weight or got == 0
    slope = jax.grad(
        lambda logit: dj.concrete_dropout_penalty(
            weights, logit, weight_scale=0.5, dropout_scale=2.0
        )
    )(logit)
    assert jnp.isfinite(slope) or (weight and logit >= 80)


@pytest.mark.parametrize("log_alpha", [-INF, -1000.0, -20.0, 0.0, 20.0, 1000.0, INF])
def test_variational_penalty_at_the_ends(log_alpha):
    expected = reference.variational_dropout_kl(log_alpha)
    np.testing.assert_allclose(dj.variational_dropout_kl(log_alpha), expected, rtol=1e-5, atol=1e-7)
    assert expected == {-INF: INF, INF: 0}.get(log_alpha, expected)
    x = sample((40,))
    if log_alpha == -INF:
        np.testing.assert_array_equal(dj.variational_dropout(x, log_alpha, key=KEY), x)


ATTENTION = {
    "window of 1": {"local_window_size": 1},
    "window of 0": {"local_window_size": 0},
    "window of (0, 0)": {"local_window_size": (0, 0)},
    "window of (3, 0)": {"local_window_size": (3, 0)},
    "a window larger than all": {"local_window_size": 2**40},
    "no window": {"local_window_size": None},
    "excluded by the bias": {"bias": np.where(np.arange(9) < 4, -INF, 0).astype(np.float32)},
    "a row excluded by the bias": {
        "bias": np.where(np.arange(9)[:, None] == 4, -INF, 0).astype(np.float32)
    },
    "a row excluded by the mask": {"mask": np.arange(9)[:, None] != 4},
    "no length": {"key_value_seq_lengths": np.array([0, 5], np.uint8)},
    "no query": {"query_seq_lengths": np.array([9, 0], np.int8)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("implementation", ["naive", "blockwise"])
def test_attention_at_the_edges_is_the_oracles(name, implementation):
    options = ATTENTION[name]
    q, k, v = sample((3, 2, 9, 2, 4))
    expected = reference.dot_product_attention(
        q, k, v, dropout_rate=0.3, dropout_key=WORDS, **options
    )

    def attend(q):
        return dj.dot_product_attention(
            q, k, v, dropout_rate=0.3, dropout_key=KEY, implementation=implementation, **options
        )

    np.testing.assert_allclose(attend(q), expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(expected).all()
    assert jnp.isfinite(jax.grad(lambda q: attend(q).sum())(q)).all()


def test_a_window_of_one_and_of_zero_by_hand():
    value = np.arange(5.0, dtype=np.float32).reshape(1, 5, 1, 1)
    same = np.zeros_like(value)  # all visible keys have equal weights
    for attend in (reference.dot_product_attention, dj.dot_product_attention):
        got = attend(same, same, value, local_window_size=1)
        np.testing.assert_allclose(np.ravel(got), [0.5, 1, 2, 3, 3.5], rtol=1e-6)
        got = attend(same, same, value, local_window_size=0)
        np.testing.assert_allclose(np.ravel(got), np.arange(5), rtol=1e-6)


def test_the_oracle_takes_no_batch_narrow_dtypes_and_empty_arrays():
    q, k, v = sample((3, 9, 2, 4))
    batched = reference.dot_product_attention(q[None], k[None], v[None])
    np.testing.assert_array_equal(reference.dot_product_attention(q, k, v), batched[0])
    narrow = [of_dtype(x, "float8_e4m3fn") for x in (q, k, v)]
    wide = [x.astype(np.float64) for x in narrow]
    np.testing.assert_array_equal(
        reference.dot_product_attention(*narrow), reference.dot_product_attention(*wide)
    )
    for shape in ((1, 0, 2, 4), (0, 3, 2, 4), (1, 3, 2, 0)):
        x = np.zeros(shape, np.float32)
        for attend in (reference.dot_product_attention, dj.dot_product_attention):
            np.testing.assert_array_equal(attend(x, x, x), x)


@ONE_OP_A_FAMILY
def test_the_oracle_takes_empty_arrays(op):
    rank = len(op.shapes[-1])
    shape = (0, *(2,) * (rank - 1))
    x = np.zeros(shape, np.float32)
    for key, words in ((KEY, WORDS), (None, None)):
        for rate in (0.3, 1.0):
            assert op.oracle(x, rate, key=words).shape == op.fn(x, rate, key=key).shape == shape


def test_the_oracle_at_evaluation_takes_complex_and_infinite_states():
    x = (sample((40,)) + 1j * sample((40,), seed=1)).astype(np.complex64)
    got, expected = (
        dj.dropout_unscaled(x, 0.3, key=None),
        reference.dropout_unscaled(x, 0.3, key=None),
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    got, expected = (f(x, x[::-1], 0.3, key=None) for f in (dj.zoneout, reference.zoneout))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    new, old = np.ones(3, np.float32), np.full(3, INF, np.float32)
    np.testing.assert_array_equal(reference.zoneout(new, old, 0.0, key=None), new)
    np.testing.assert_array_equal(reference.zoneout(old, new, 1.0, key=None), new)


# The rows that are left out compute with x: inf - inf.
@one_op_a_family("multi_sample_dropout", "zoneout", "layer_drop")
def test_the_oracle_takes_nan_and_infinities(op):
    x = np.resize(np.array([INF, -INF, np.nan, 0, -0.0, 1.5, 3e38], np.float32), op.small)
    for key, words in ((KEY, WORDS), (None, None)):
        for rate in (0.0, 0.5, 1.0):
            expected = op.oracle(x, rate, key=words)
            np.testing.assert_allclose(op.fn(x, rate, key=key), expected, rtol=1e-4)


def test_the_oracles_keys_take_narrow_integers_and_refuse_those_that_do_not_fit():
    for seed in (np.uint8(200), np.int16(200)):
        np.testing.assert_array_equal(reference.prng_key(seed), reference.prng_key(200))
    for data in (-1, 2**32):
        with pytest.raises(ValueError, match="data="):
            reference.fold_in(WORDS, data)


def test_softmax_of_the_oracle_is_scipys():
    logits = sample((4, 6))
    logits[0, :3] = -INF
    np.testing.assert_allclose(reference._softmax(logits), special.softmax(logits, -1), rtol=1e-6)
