"""Scores of probabilities against scikit-learn, SciPy and torchmetrics."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from op_registry import sample
from scipy import optimize, special
from sklearn import metrics

from dropout_jax import calibration

PROBABILITIES = special.softmax(2 * sample((200, 5)), axis=-1).astype(np.float32)
# Drawn from the probabilities, so bins err to both sides and it matters which example is in which.
LABELS = (np.log(PROBABILITIES) + np.random.default_rng(1).gumbel(size=(200, 5))).argmax(-1)


def test_brier_and_likelihood_are_scikit_learns():
    onehot = np.eye(5)[LABELS]
    brier = sum(metrics.brier_score_loss(onehot[:, c], PROBABILITIES[:, c]) for c in range(5))
    np.testing.assert_allclose(calibration.brier_score(PROBABILITIES, LABELS), brier, rtol=1e-5)
    wide = PROBABILITIES.astype(np.float64)
    loss = metrics.log_loss(LABELS, wide / wide.sum(-1, keepdims=True), labels=range(5))
    np.testing.assert_allclose(
        calibration.negative_log_likelihood(PROBABILITIES, LABELS), loss, rtol=1e-5
    )


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_calibration_error_with_equal_widths_is_torchmetrics(bins):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing torchmetrics warns of is not ours
        from torchmetrics.functional.classification import multiclass_calibration_error
    theirs = multiclass_calibration_error(
        torch.tensor(PROBABILITIES).double(),
        torch.tensor(LABELS),
        num_classes=5,
        n_bins=bins,
        norm="l1",
    )
    got = calibration.expected_calibration_error(PROBABILITIES, LABELS, bins=bins)
    # torchmetrics subtracts float32 means: at one bin it is 1.9e-7 from float64, and ours 4e-9.
    np.testing.assert_allclose(got, theirs.item(), rtol=1e-5, atol=5e-7)
    confidence = PROBABILITIES.max(-1).astype(np.float64)
    gap = (PROBABILITIES.argmax(-1) == LABELS) - confidence
    index = np.ceil(confidence * bins)
    exact = sum(abs(gap[index == b].sum()) for b in range(1, bins + 1)) / 200
    np.testing.assert_allclose(got, exact, rtol=1e-5)


@pytest.mark.parametrize("bins", [1, 7, 20])
def test_calibration_error_with_equal_masses_by_hand(bins):
    confidence = PROBABILITIES.max(-1)
    correct = PROBABILITIES.argmax(-1) == LABELS
    order = np.argsort(confidence)
    index = np.arange(200) * bins // 200
    expected = sum(
        abs(correct[order[index == b]].mean() - confidence[order[index == b]].mean())
        * (index == b).mean()
        for b in range(bins)
    )
    got = calibration.expected_calibration_error(PROBABILITIES, LABELS, bins=bins, binning="mass")
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_auroc_is_scikit_learns_with_ties():
    rng = np.random.default_rng(0)
    for scores in (rng.standard_normal(300), rng.integers(0, 5, 300)):
        positive = rng.random(300) < 0.3
        scores = scores.astype(np.float32)
        np.testing.assert_allclose(
            calibration.auroc(scores, positive), metrics.roc_auc_score(positive, scores), rtol=1e-5
        )
    assert jnp.isnan(calibration.auroc(jnp.ones(3), jnp.ones(3, bool)))
    infinite = np.array([np.inf, -np.inf, 0.0], np.float32)
    assert calibration.auroc(infinite, np.array([True, False, False])) == 1


def test_temperature_is_the_minimum():
    """An overconfident model: the labels follow softmax(logits / 3)."""
    logits = 3 * sample((200, 5), seed=5)
    draws = np.random.default_rng(2).gumbel(size=(200, 5))
    labels = (logits / 3 + draws).argmax(-1)

    def loss(log_t):
        return -special.log_softmax(logits / np.exp(log_t), axis=-1)[range(200), labels].mean()

    best = optimize.minimize_scalar(loss, bounds=(-7, 7), method="bounded", options={"xatol": 1e-9})
    np.testing.assert_allclose(
        calibration.fit_temperature(logits, labels), np.exp(best.x), rtol=1e-3
    )
    separable = 10 * np.eye(5, dtype=np.float32)
    sharp = calibration.fit_temperature(separable, np.arange(5))
    assert (
        calibration.negative_log_likelihood(jax.nn.softmax(separable / sharp), np.arange(5)) < 1e-6
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("binning", ["width", "mass"])
def test_half_precision_and_many_examples(dtype, binning):
    """Sums are at least float32: 100,000 examples in half precision are as in float32."""
    rng = np.random.default_rng(0)
    first = rng.uniform(0.5, 1, 100_000).astype(dtype)
    probabilities = np.stack([first, (1 - first.astype(np.float32)).astype(dtype)], -1)
    labels = (rng.random(100_000) > 0.8).astype(np.int32)
    for measure in (calibration.brier_score, calibration.negative_log_likelihood):
        narrow = measure(probabilities, labels)
        assert narrow.dtype == jnp.float32
        wide = measure(probabilities.astype(np.float32), labels)
        np.testing.assert_allclose(narrow, wide, rtol=1e-6)
    narrow, wide = (
        calibration.expected_calibration_error(p, labels, bins=3000, binning=binning)
        for p in (probabilities, probabilities.astype(np.float32))
    )
    np.testing.assert_allclose(narrow, wide, rtol=1e-6)


def test_auroc_of_many_examples():
    n = 100_000
    scores = np.linspace(0, 1, n, dtype=np.float32)
    assert calibration.auroc(scores, np.arange(n) >= n // 2) == 1


@pytest.mark.parametrize("label", [-1, 5])
def test_a_traced_label_that_is_no_class_gives_nan(label):
    labels = jnp.asarray(LABELS).at[0].set(label)
    for measure in (
        calibration.brier_score,
        calibration.negative_log_likelihood,
        calibration.fit_temperature,
    ):
        assert jnp.isnan(jax.jit(lambda y: measure(PROBABILITIES, y))(labels))  # noqa: B023


def test_scores_run_under_jit():
    for score in (
        calibration.brier_score,
        calibration.negative_log_likelihood,
        calibration.expected_calibration_error,
    ):
        np.testing.assert_allclose(
            jax.jit(score)(PROBABILITIES, LABELS), score(PROBABILITIES, LABELS), rtol=1e-5
        )


SCORES, POSITIVE = np.ones(3, np.float32), np.ones(3, bool)
WRONG_GROUPS = {
    "scores of two axes": (SCORES[:, None], POSITIVE, r"scores\.shape=\(3, 1\).*one axis.*ravel"),
    "too many": (SCORES, np.ones(4, bool), r"positive\.shape=\(4,\).*the shape of scores, \(3,\)"),
    "one for all": (SCORES, POSITIVE[:1], r"positive\.shape=\(1,\).*that of scores, \(3,\)"),
    "not bool": (SCORES, SCORES, r"positive=.*the shape of scores.*jnp\.asarray\(positive\) != 0"),
}


@pytest.mark.parametrize("case", WRONG_GROUPS)
def test_an_error_of_auroc_names_the_argument(case, without_type_checker):
    scores, positive, message = WRONG_GROUPS[case]
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        calibration.auroc(scores, positive)


def test_nan_and_excluded_classes_are_not_quiet():
    scores = np.array([np.nan, 0.1, 0.2], np.float32)
    assert jnp.isnan(calibration.auroc(scores, np.array([True, False, False])))
    logits = np.array([[1.0, 3.0]] * 4, np.float32)
    labels = np.array([1, 1, 1, 0])
    excluded = np.concatenate([logits, np.full((4, 1), -np.inf, np.float32)], -1)
    np.testing.assert_allclose(
        calibration.fit_temperature(excluded, labels),
        calibration.fit_temperature(logits, labels),
        rtol=1e-5,
    )
    assert jnp.isnan(calibration.fit_temperature(logits * np.nan, labels))
    with pytest.raises(ValueError, match=r"logits\.shape"):
        calibration.fit_temperature(logits[:0], labels[:0])
