"""Monte Carlo dropout, and what its predictions say of uncertainty.

Probabilities are arrays (..., classes) that sum to 1 on the last axis; stacked predictions have the
samples first, (samples, ..., classes). Entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from dropout_jax import _validation, ops
from dropout_jax.random import fold

if TYPE_CHECKING:
    from jaxtyping import Array, Float


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
    key = _validation.check_key(key)
    if key is None:
        _validation.fail(
            TypeError, "key", key, "one PRNG key", "Without one every prediction is the same."
        )
    samples = _validation.check_integer(samples, "samples", 1)
    if batch_size is not None:
        batch_size = _validation.check_integer(batch_size, "batch_size", 1)
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


def _entropy(probabilities):
    return jax.scipy.special.entr(probabilities).sum(-1)


def _samples_first(predictions, axes: int = 1) -> Float[Array, "samples ..."]:
    predictions = _validation.check_real_array(predictions, "predictions")
    _validation.check_min_ndim(predictions, axes, "predictions")
    return ops.widen(predictions)
