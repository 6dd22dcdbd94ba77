"""Score predicted probabilities: proper scores, calibration, ranking; and fit a temperature.

Probabilities are arrays (..., classes) that sum to 1 on the last axis.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from dropout_jax import _validation, ops

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int32


_MAX_BINS = 2**24  # float32 tells no more bins apart


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> Float[Array, ""]:
    """Compute the mean squared error of the probabilities.

    Formula: mean over examples of sum_c (p_c - [c = label])^2, from 0 to 2.

    Args:
      probabilities: (..., classes).
      labels: integers (...) of any dtype, from 0 to classes - 1. A traced one outside gives NaN.

    Returns:
      A scalar; NaN if there are no examples.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax.calibration import brier_score
      >>> float(brier_score(jnp.array([[1.0, 0.0], [0.5, 0.5]]), jnp.array([0, 0])))
      0.25
    """
    probabilities, labels = _check_scores_and_labels(probabilities, labels, "probabilities")
    return _compute_brier_score(probabilities, labels)


@jax.jit
def _compute_brier_score(
    probabilities: Float[Array, "*batch classes"], labels: Int32[Array, "*batch"]
) -> Float[Array, ""]:
    target = jax.nn.one_hot(labels, probabilities.shape[-1], dtype=probabilities.dtype)
    error = jnp.square(probabilities - target).sum(-1)
    return ops.nan_unless(_is_class(labels, probabilities), error).mean()


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> Float[Array, ""]:
    """Compute the mean negative logarithm of the probability of the label.

    Formula: mean over examples of -log p_label, in nats.

    Args:
      probabilities: (..., classes).
      labels: integers (...) of any dtype, from 0 to classes - 1. A traced one outside gives NaN.

    Returns:
      A scalar; inf if a label has probability 0, NaN if there are no examples.

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
    probabilities, labels = _check_scores_and_labels(probabilities, labels, "probabilities")
    return _compute_negative_log_likelihood(probabilities, labels)


@jax.jit
def _compute_negative_log_likelihood(
    probabilities: Float[Array, "*batch classes"], labels: Int32[Array, "*batch"]
) -> Float[Array, ""]:
    return -jnp.log(_scores_of_labels(probabilities, labels)).mean()


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15, binning: str = "width"
) -> Float[Array, ""]:
    """Compute the mean distance of confidence from accuracy, over bins of confidence.

    Formula: sum over bins b of (n_b / n) abs(accuracy_b - confidence_b), the confidence being the
    largest probability.

    Args:
      probabilities: (..., classes).
      labels: integers (...) of any dtype, from 0 to classes - 1. A traced one outside gives NaN.
      bins: the number of bins, an integer from 1 to 2^24; an empty bin adds nothing.
      binning: "width" for bins ((b - 1) / bins, b / bins]; "mass" for bins of equally many examples
        in order of confidence (sizes differ by at most one).

    Returns:
      A scalar in [0, 1]; NaN if there are no examples.

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
    probabilities, labels = _check_scores_and_labels(probabilities, labels, "probabilities")
    bins = _validation.check_integer(bins, "bins", 1, _MAX_BINS)
    binning = _validation.check_choice(binning, "binning", ("width", "mass"))
    compute = functools.partial(_compute_calibration_error, bins=bins, binning=binning)
    return ops.with_replicated_result(probabilities, compute)(probabilities, labels)


@functools.partial(jax.jit, static_argnames=("bins", "binning"))
def _compute_calibration_error(
    probabilities: Float[Array, "*batch classes"],
    labels: Int32[Array, "*batch"],
    *,
    bins: int,
    binning: str,
) -> Float[Array, ""]:
    confidence = probabilities.max(-1).ravel()
    correct = probabilities.argmax(-1).astype(jnp.int32) == labels
    if binning == "width":
        index = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    else:
        index_of_rank = np.arange(confidence.size) * bins // max(confidence.size, 1)
        index = jnp.zeros(confidence.size, jnp.int32)
        index = index.at[jnp.argsort(confidence)].set(jnp.asarray(index_of_rank, jnp.int32))
    accuracy = ops.nan_unless(_is_class(labels, probabilities), correct.astype(confidence.dtype))
    gap = accuracy.ravel() - confidence
    return jnp.abs(jax.ops.segment_sum(gap, index, bins)).sum() / confidence.size


def auroc(scores: ArrayLike, positive: ArrayLike) -> Float[Array, ""]:
    """Compute how well a score separates two groups, as for out-of-distribution detection.

    Formula: P(score of a positive > that of a negative) + P(equal) / 2: the area under the receiver
    operating characteristic.

    Args:
      scores: a floating array (examples,).
      positive: a bool array (examples,), True for the group expected to score higher.

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
    if scores.ndim != 1:
        remedy = "Flatten both: scores.ravel(), positive.ravel()."
        _validation.fail(ValueError, "scores.shape", tuple(scores.shape), "one axis", remedy)
    positive = _validation.check_mask(positive, scores.shape, "positive", of="the shape of scores")
    if positive.shape != scores.shape:
        allowed = f"that of scores, {tuple(scores.shape)}"
        remedy = "Pass one bool for each score."
        _validation.fail(ValueError, "positive.shape", tuple(positive.shape), allowed, remedy)
    scores = ops.widen(scores)  # the narrowest dtypes have no infinity
    if jax.export.is_symbolic_dim(scores.shape[0]):  # JAX has no cumulative sum of such a size
        remedy = "Export for a fixed number of examples."
        _validation.fail(ValueError, "scores.shape", scores.shape, "of a known size", remedy)
    return ops.with_replicated_result(scores, _compute_auroc)(scores, positive)


@jax.jit
def _compute_auroc(
    scores: Float[Array, " examples"], positive: Bool[Array, " examples"]
) -> Float[Array, ""]:
    order = jnp.argsort(scores)
    negatives = jnp.cumulative_sum(~positive[order], include_initial=True, dtype=jnp.int32)
    negative_count, positive_count = (
        group.sum(dtype=jnp.int32).astype(scores.dtype) for group in (~positive, positive)
    )
    below, up_to = (
        negatives[jnp.searchsorted(scores[order], scores, side=side, method="sort")].astype(
            scores.dtype
        )
        for side in ("left", "right")
    )
    wins = jnp.where(positive, (below + up_to) / 2, 0).sum()
    area = wins / positive_count / negative_count
    return ops.nan_unless(~jnp.isnan(scores).any(), area)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> Float[Array, ""]:
    """Fit the temperature that calibrates logits: softmax(logits / temperature).

    Formula: argmin over t in [1e-3, 1e3] of the mean of -log softmax(logits / t)_label. The loss is
    convex in 1 / t, so bisection on the sign of its derivative finds the minimum.

    Args:
      logits: of validation data, (..., classes).
      labels: integers (...) of any dtype, from 0 to classes - 1. A traced one outside gives NaN.

    Returns:
      A scalar, above 1 for an overconfident model. If the logits separate the data, there is no
      minimum; the result is then a temperature at which the loss rounds to 0. NaN if a logit is NaN
      or the logit of a label is -inf, where the loss is infinite at every temperature.

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
    logits, labels = _check_scores_and_labels(logits, labels, "logits")
    if logits.size == 0:
        _validation.fail(
            ValueError, "logits.shape", logits.shape, "not empty", "Pass validation data."
        )
    return _fit_temperature(logits, labels)


@jax.jit
def _fit_temperature(
    logits: Float[Array, "*batch classes"], labels: Int32[Array, "*batch"]
) -> Float[Array, ""]:
    logits = logits - logits.max(-1, keepdims=True)
    target = _scores_of_labels(logits, labels)
    finite = jnp.where(logits == -jnp.inf, 0, logits)  # an excluded class has weight 0, not NaN

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        expected = (jax.nn.softmax(logits * jnp.exp(middle)) * finite).sum(-1)
        is_falling = (expected - target).mean() < 0  # the loss falls as 1 / t grows
        return jnp.where(is_falling, middle, low), jnp.where(is_falling, high, middle)

    # It has the type of the loop's results, which may vary by device under shard_map.
    limit = jnp.where(False, target.sum(), jnp.log(jnp.asarray(1e3, logits.dtype)))
    low, high = lax.fori_loop(0, 60, halve, (-limit, limit))
    is_valid = jnp.isfinite(target).all() & ~jnp.isnan(logits).any()
    return ops.nan_unless(is_valid, jnp.exp(-(low + high) / 2))


def _check_scores_and_labels(
    scores: ArrayLike, labels: ArrayLike, name: str
) -> tuple[Float[Array, "*batch classes"], Int32[Array, "*batch"]]:
    scores = _validation.check_real_array(scores, name)
    _validation.check_classes(scores, name)
    return ops.widen(scores), _validation.check_labels(labels, scores.shape[:-1], scores.shape[-1])


def _scores_of_labels(
    scores: Float[Array, "*batch classes"], labels: Int32[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Return the score of each label; NaN where a traced label is not a class."""
    label_scores = jnp.take_along_axis(scores, labels[..., None], -1)[..., 0]
    return ops.nan_unless(_is_class(labels, scores), label_scores)


def _is_class(
    labels: Int32[Array, "*batch"], scores: Float[Array, "*batch classes"]
) -> Bool[Array, "*batch"]:
    """Whether each label is a class; one that is known has been checked, a traced one has not."""
    return (labels >= 0) & (labels < scores.shape[-1])
