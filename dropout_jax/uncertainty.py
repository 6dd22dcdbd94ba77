"""Monte Carlo dropout, and measures of the uncertainty of its predictions.

Probabilities are arrays (..., classes) that sum to 1 on the last axis; stacked predictions have the
samples first, (samples, ..., classes). Entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dropout_jax import _validation, ops
from dropout_jax.random import fold

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def mc_dropout(
    predict: Callable[[jax.Array], Any],
    key: jax.Array,
    samples: int,
    *,
    batch_size: int | None = None,
) -> Any:
    """Predict several times with dropout, each time with its own key.

    Formula: the stack over i of predict(fold(key, i)), i from 0 to samples - 1.

    Args:
      predict: a function of one key, such as lambda k: softmax(model(x, key=k)). Each call of
        mc_dropout compiles it once (for all keys); under your own jit, it compiles once.
      key: one PRNG key, typed or raw.
      samples: the number of predictions, an integer from 1 to 2^32.
      batch_size: the number that run at once (vmapped); a small one saves memory. None: all.

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
    typed_key = _validation.check_key(key)
    if typed_key is None:
        remedy = "Pass jax.random.key(seed): without a key all predictions are the same."
        _validation.fail(TypeError, "key", key, "one PRNG key", remedy)
    samples = _validation.check_integer(samples, "samples", 1, 2**32)
    if batch_size is not None:
        batch_size = _validation.check_integer(batch_size, "batch_size", 1)
    indices = jnp.arange(samples, dtype=jnp.uint32)

    def predict_sample(index):
        return predict(fold(typed_key, index))

    if batch_size is None or batch_size >= samples:
        return jax.jit(jax.vmap(predict_sample))(indices)
    return jax.jit(lambda indices: lax.map(predict_sample, indices, batch_size=batch_size))(indices)


def predictive_mean_and_std(
    predictions: ArrayLike,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Compute the mean and the standard deviation over samples.

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
    return _compute_mean_and_std(_check_predictions(predictions))


@jax.jit
def _compute_mean_and_std(
    predictions: Float[Array, "samples ..."],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    variance = predictions.var(0)
    is_zero = variance == 0  # the derivative of the root at 0 is infinite; here it is 0
    return predictions.mean(0), jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, variance)))


def predictive_entropy(predictions: ArrayLike) -> Float[Array, "..."]:
    """Compute the total uncertainty: the entropy of the mean prediction.

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
    return _compute_predictive_entropy(_check_probabilities(predictions))


def expected_entropy(predictions: ArrayLike) -> Float[Array, "..."]:
    """Compute the uncertainty of the data: the mean entropy of the predictions.

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
    return _compute_expected_entropy(_check_probabilities(predictions))


def mutual_information(predictions: ArrayLike) -> Float[Array, "..."]:
    """Compute the uncertainty of the model (BALD): how much the predictions disagree.

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
    return _compute_mutual_information(_check_probabilities(predictions))


def variation_ratio(predictions: ArrayLike) -> Float[Array, "..."]:
    """Compute the share of samples that do not predict the most frequent class.

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
    return _compute_variation_ratio(_check_probabilities(predictions))


@jax.jit
def _compute_variation_ratio(
    predictions: Float[Array, "samples *batch classes"],
) -> Float[Array, "*batch"]:
    choices = predictions.argmax(-1).astype(jnp.int32)
    votes = jax.nn.one_hot(choices, predictions.shape[-1], dtype=predictions.dtype)
    has_nan = jnp.isnan(predictions).any((0, -1))
    return ops.nan_unless(~has_nan, 1 - votes.mean(0).max(-1))


@jax.jit
def _compute_mutual_information(
    predictions: Float[Array, "samples *batch classes"],
) -> Float[Array, "*batch"]:
    total, expected = (
        _compute_predictive_entropy(predictions),
        _compute_expected_entropy(predictions),
    )
    return jnp.maximum(total - expected, 0)


@jax.jit
def _compute_predictive_entropy(
    predictions: Float[Array, "samples *batch classes"],
) -> Float[Array, "*batch"]:
    return _compute_entropy(predictions.mean(0))


@jax.jit
def _compute_expected_entropy(
    predictions: Float[Array, "samples *batch classes"],
) -> Float[Array, "*batch"]:
    return _compute_entropy(predictions).mean(0)


def _compute_entropy(probabilities: Float[Array, "*batch classes"]) -> Float[Array, "*batch"]:
    # The derivative of -p log p at 0 is infinite; here it is 0, so that a class excluded by a logit
    # of -inf puts no NaN into the gradient of the others.
    positive = jnp.where(probabilities == 0, 1, probabilities)
    return (positive * -jnp.log(positive)).sum(-1)


def _check_probabilities(predictions: ArrayLike) -> Float[Array, "samples *batch classes"]:
    predictions = _check_predictions(predictions, 2)
    _validation.check_classes(predictions, "predictions")
    return predictions


def _check_predictions(predictions: ArrayLike, axes: int = 1) -> Float[Array, "samples ..."]:
    predictions = _validation.check_real_array(predictions, "predictions")
    _validation.check_min_ndim(predictions, axes, "predictions")
    if predictions.shape[0] == 0:
        allowed = "of at least 1 sample on axis 0"
        remedy = "Stack the samples first: jnp.stack(samples)."
        _validation.fail(ValueError, "predictions.shape", predictions.shape, allowed, remedy)
    return ops.widen(predictions)
