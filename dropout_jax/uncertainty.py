"""Monte Carlo dropout, and what is computed from its predictions.

Probabilities are arrays (..., classes) that sum to 1 on the last axis; stacked predictions have the
samples first, (samples, ..., classes). Entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dropout_jax import _apply, _validation
from dropout_jax.random import fold

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def mc_dropout(predict: Callable, key, samples, *, batch_size=None) -> Any:
    """Predict several times with dropout on, each time with its own key.

    Formula: the stack over i of predict(fold(key, i)), i from 0 to samples - 1.

    Args:
      predict: a function of one key, such as lambda k: softmax(model(x, key=k)). A call of
        mc_dropout compiles it once (for all keys); under your own jit, once for all calls.
      key: one PRNG key, typed or raw.
      samples: how many predictions, an integer of at least 1.
      batch_size: how many run at once (vmapped). None: all of them. Less bounds the memory.

    Returns:
      What `predict` returns, stacked along a new first axis, leaf by leaf.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Gal and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import dropout, mc_dropout
      >>> predict = lambda key: dropout(jnp.ones(3), 0.5, key=key)
      >>> mc_dropout(predict, jax.random.key(0), 100, batch_size=10).shape
      (100, 3)
    """
    if not callable(predict):
        _validation.fail(
            TypeError, "predict", predict, "a function of a key", "Pass lambda key: ..."
        )
    key = _validation.key(key)
    if key is None:
        _validation.fail(
            TypeError, "key", key, "one PRNG key", "Without one every prediction is the same."
        )
    samples = _validation.integer(samples, "samples", 1)
    if batch_size is not None:
        batch_size = _validation.integer(batch_size, "batch_size", 1)
    places = jnp.arange(samples, dtype=jnp.uint32)

    def predict_at(place):
        return predict(fold(key, place))

    if batch_size is None or batch_size >= samples:
        return jax.jit(jax.vmap(predict_at))(places)
    return jax.jit(lambda places: lax.map(predict_at, places, batch_size=batch_size))(places)


def predictive_mean_and_std(predictions) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The mean and the standard deviation over samples.

    Formula: mean_i y_i and sqrt(mean_i (y_i - mean)^2).

    Args:
      predictions: a floating array, samples first.

    Returns:
      Two arrays of the shape of one prediction.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Gal and Ghahramani, ICML 2016.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax import predictive_mean_and_std
      >>> mean, std = predictive_mean_and_std(jnp.array([[1.0, 2.0], [3.0, 2.0]]))
      >>> mean.tolist(), std.tolist()
      ([2.0, 2.0], [1.0, 0.0])
    """
    predictions = _samples_first(predictions)
    variance = predictions.var(0)
    spread = variance > 0  # the root's derivative at 0 is infinite; here it is 0
    return predictions.mean(0), jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1)), 0)


def predictive_entropy(predictions) -> Float[Array, "..."]:
    """Total uncertainty: the entropy of the mean prediction.

    Formula: H[mean_i p_i], H[p] = -sum_c p_c log p_c.

    Args:
      predictions: stacked probabilities (samples, ..., classes).

    Returns:
      An array of the middle shape, in nats, from 0 to log(classes).

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Gal, "Uncertainty in deep learning", 2016, section 3.3.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax import predictive_entropy
      >>> round(float(predictive_entropy(jnp.array([[1.0, 0.0], [0.0, 1.0]]))), 4)
      0.6931
    """
    return _entropy(_samples_first(predictions, 2).mean(0))


def expected_entropy(predictions) -> Float[Array, "..."]:
    """Uncertainty of the data: the mean of the predictions' entropies.

    Formula: mean_i H[p_i].

    Args:
      predictions: stacked probabilities (samples, ..., classes).

    Returns:
      An array of the middle shape, in nats.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Gal, 2016, section 3.3.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax import expected_entropy
      >>> float(expected_entropy(jnp.array([[1.0, 0.0], [0.0, 1.0]])))
      0.0
    """
    return _entropy(_samples_first(predictions, 2)).mean(0)


def mutual_information(predictions) -> Float[Array, "..."]:
    """Uncertainty of the model (BALD): how much the predictions disagree.

    Formula: predictive_entropy - expected_entropy.

    Args:
      predictions: stacked probabilities (samples, ..., classes).

    Returns:
      An array of the middle shape, in nats, at least 0.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Houlsby et al., "Bayesian active learning for classification and preference learning",
      2011.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax import mutual_information
      >>> round(float(mutual_information(jnp.array([[1.0, 0.0], [0.0, 1.0]]))), 4)
      0.6931
    """
    return jnp.maximum(predictive_entropy(predictions) - expected_entropy(predictions), 0)


def variation_ratio(predictions) -> Float[Array, "..."]:
    """The share of samples that do not predict the commonest class.

    Formula: 1 - max_c (share of samples whose largest probability is c's).

    Args:
      predictions: stacked probabilities (samples, ..., classes).

    Returns:
      An array of the middle shape, in [0, 1).

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: Freeman, "Elementary applied statistics", 1965; Gal, 2016, section 3.3.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax import variation_ratio
      >>> float(variation_ratio(jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])))
      0.25
    """
    predictions = _samples_first(predictions, 2)
    votes = jax.nn.one_hot(predictions.argmax(-1), predictions.shape[-1])
    unknown = jnp.isnan(predictions).any((0, -1))
    return jnp.where(unknown, jnp.nan, 1 - votes.mean(0).max(-1))


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
      >>> from dropout_jax import brier_score
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
      >>> from dropout_jax import negative_log_likelihood
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
      >>> from dropout_jax import expected_calibration_error
      >>> p = jnp.array([[0.75, 0.25], [0.75, 0.25]])
      >>> float(expected_calibration_error(p, jnp.array([0, 1])))
      0.25
    """
    probabilities, labels = _labelled(probabilities, labels, "probabilities")
    bins = _validation.integer(bins, "bins", 1)
    binning = _validation.choice(binning, "binning", ("width", "mass"))
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
      >>> from dropout_jax import auroc
      >>> float(auroc(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([False, False, True, True])))
      0.75
    """
    scores = _validation.real_array(scores, "scores")
    positive = _validation.mask(positive, scores.shape, "positive")
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
      >>> from dropout_jax import fit_temperature
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


def _entropy(probabilities):
    return jax.scipy.special.entr(probabilities).sum(-1)


def _samples_first(predictions, axes: int = 1) -> Float[Array, "samples ..."]:
    predictions = _validation.real_array(predictions, "predictions")
    _validation.at_least_axes(predictions, axes, "predictions")
    return _wide(predictions)


def _labelled(scores, labels, name: str) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    scores = _validation.real_array(scores, name)
    _validation.at_least_axes(scores, 1, name)
    return _wide(scores), _validation.labels(labels, scores.shape[:-1], scores.shape[-1])


def _wide(x):
    """At least float32: sums over many examples stagnate in half precision."""
    return x.astype(_apply.compute_dtype(x))


def _at_labels(scores, labels):
    """The score of each label; NaN where a traced label is no class."""
    found = jnp.take_along_axis(scores, labels[..., None], -1)[..., 0]
    return jnp.where((labels >= 0) & (labels < scores.shape[-1]), found, jnp.nan)
