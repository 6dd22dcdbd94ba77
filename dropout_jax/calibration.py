"""Scores of predicted probabilities: calibration, proper scores, ranking, and a temperature.

Probabilities are arrays (..., classes) that sum to 1 on the last axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dropout_jax import _validation, ops

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def brier_score(probabilities, labels) -> Float[Array, ""]:
    """The mean squared error of the probabilities.

    Formula: mean over examples of sum_c (p_c - [c = label])^2, from 0 to 2.

    Args:
      probabilities: (..., classes).
      labels: integers (...), from 0 to classes - 1.

    Returns:
      A scalar.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax.calibration import brier_score
      >>> float(brier_score(jnp.array([[1.0, 0.0], [0.5, 0.5]]), jnp.array([0, 0])))
      0.25
    """
    probabilities, labels = _labelled(probabilities, labels, "probabilities")
    target = jax.nn.one_hot(labels, probabilities.shape[-1], dtype=probabilities.dtype)
    error = jnp.square(probabilities - target).sum(-1)
    return jnp.where(jnp.isnan(_at_labels(probabilities, labels)), jnp.nan, error).mean()


def negative_log_likelihood(probabilities, labels) -> Float[Array, ""]:
    """The mean surprise at the labels.

    Formula: mean over examples of -log p_label, in nats.

    Args:
      probabilities: (..., classes).
      labels: integers (...), from 0 to classes - 1.

    Returns:
      A scalar; inf if a label had probability 0.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Good, "Rational decisions", 1952.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax.calibration import negative_log_likelihood
      >>> p = jnp.array([[0.5, 0.5], [0.25, 0.75]])
      >>> round(float(negative_log_likelihood(p, jnp.array([0, 1]))), 4)
      0.4904
    """
    probabilities, labels = _labelled(probabilities, labels, "probabilities")
    return -jnp.log(_at_labels(probabilities, labels)).mean()


def expected_calibration_error(
    probabilities, labels, *, bins=15, binning="width"
) -> Float[Array, ""]:
    """How far confidence is from accuracy, over bins of confidence.

    Formula: sum over bins b of (n_b / n) |accuracy_b - confidence_b|, the confidence being the
    largest probability.

    Args:
      probabilities: (..., classes).
      labels: integers (...), from 0 to classes - 1.
      bins: how many, an integer of at least 1.
      binning: "width", bins ((b - 1) / bins, b / bins]; or "mass", bins of equally many examples in
        order of confidence (sizes differ by one at most).

    Returns:
      A scalar in [0, 1].

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017; Nixon et al.,
      "Measuring calibration in deep learning", 2019, for equal mass.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax.calibration import expected_calibration_error
      >>> p = jnp.array([[0.75, 0.25], [0.75, 0.25]])
      >>> float(expected_calibration_error(p, jnp.array([0, 1])))
      0.25
    """
    probabilities, labels = _labelled(probabilities, labels, "probabilities")
    bins = _validation.check_integer(bins, "bins", 1)
    binning = _validation.check_choice(binning, "binning", ("width", "mass"))
    confidence = probabilities.max(-1).ravel()
    correct = (probabilities.argmax(-1) == labels).ravel()
    if binning == "width":
        place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    else:
        place_of_rank = np.arange(confidence.size) * bins // max(confidence.size, 1)
        place = jnp.zeros(confidence.size, jnp.int32)
        place = place.at[jnp.argsort(confidence)].set(jnp.asarray(place_of_rank, jnp.int32))
    gap = correct.astype(confidence.dtype) - confidence
    return jnp.abs(jax.ops.segment_sum(gap, place, bins)).sum() / confidence.size


def auroc(scores, positive) -> Float[Array, ""]:
    """How well a score tells two groups apart, as for out-of-distribution detection.

    Formula: P(score of a positive > that of a negative) + P(equal) / 2: the area under the receiver
    operating characteristic.

    Args:
      scores: a floating array (examples,).
      positive: a bool array (examples,), True for the group that should score higher.

    Returns:
      A scalar in [0, 1]; NaN if a group is empty.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Hanley and McNeil, "The meaning and use of the area under a ROC curve", 1982.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax.calibration import auroc
      >>> float(auroc(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([False, False, True, True])))
      0.75
    """
    scores = _validation.check_real_array(scores, "scores")
    positive = _validation.check_mask(positive, scores.shape, "positive")
    if positive.shape != scores.shape or scores.ndim != 1:
        _validation.fail(
            ValueError,
            "positive.shape",
            tuple(positive.shape),
            f"one axis, that of scores, {tuple(scores.shape)}",
            "Flatten both: scores.ravel(), positive.ravel().",
        )
    negatives = jnp.sort(jnp.where(positive, jnp.inf, scores))
    count = (~positive).sum()
    below, up_to = (
        jnp.minimum(jnp.searchsorted(negatives, scores, side=side), count)
        for side in ("left", "right")
    )
    wins = jnp.where(positive, (below + up_to).astype(jnp.float32) / 2, 0).sum()
    area = wins / positive.sum().astype(jnp.float32) / count.astype(jnp.float32)
    return jnp.where(jnp.isnan(scores).any(), jnp.nan, area)


def fit_temperature(logits, labels) -> Float[Array, ""]:
    """The temperature that calibrates logits: softmax(logits / temperature).

    Formula: argmin over t in [1e-3, 1e3] of the mean of -log softmax(logits / t)_label. The loss is
    convex in 1 / t, so its derivative's sign is bisected.

    Args:
      logits: of validation data, (..., classes).
      labels: integers (...), from 0 to classes - 1.

    Returns:
      A scalar, above 1 for an overconfident model. Data that the logits separate have no minimum:
      then one at which the loss is 0 to rounding.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Guo et al., ICML 2017.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax.calibration import fit_temperature
      >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
      >>> round(float(fit_temperature(logits, jnp.array([0, 0, 0, 1]))), 3)  # 2 / log 3
      1.82
    """
    logits, labels = _labelled(logits, labels, "logits")
    if logits.size == 0:
        _validation.fail(
            ValueError, "logits.shape", logits.shape, "not empty", "Pass validation data."
        )
    return _fit_temperature(logits, labels)


@jax.jit
def _fit_temperature(logits, labels):
    logits = logits - logits.max(-1, keepdims=True)
    target = _at_labels(logits, labels)
    finite = jnp.where(logits == -jnp.inf, 0, logits)  # an excluded class has weight 0, not NaN

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        expected = (jax.nn.softmax(logits * jnp.exp(middle)) * finite).sum(-1)
        falling = (expected - target).mean() < 0  # the loss still falls as 1 / t grows
        return jnp.where(falling, middle, low), jnp.where(falling, high, middle)

    end = jnp.log(jnp.asarray(1e3, logits.dtype))
    low, high = lax.fori_loop(0, 60, halve, (-end, end))
    wrong = jnp.isnan(logits).any() | jnp.isnan(target).any()
    return jnp.where(wrong, jnp.nan, jnp.exp(-(low + high) / 2))


def _labelled(scores, labels, name: str) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    scores = _validation.check_real_array(scores, name)
    _validation.check_min_ndim(scores, 1, name)
    return ops.widen(scores), _validation.check_labels(labels, scores.shape[:-1], scores.shape[-1])


def _at_labels(scores, labels):
    """The score of each label; NaN where a traced label is no class."""
    found = jnp.take_along_axis(scores, labels[..., None], -1)[..., 0]
    return jnp.where((labels >= 0) & (labels < scores.shape[-1]), found, jnp.nan)
