"""What the claims on uncertainty share: a last-layer Laplace approximation, and measures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from common.claim import Interval, interval
from dropout_jax import (
    auroc,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)


def laplace_covariance(layer, features, precision):
    """Of the last layer's weights and biases, as (classes, inputs + 1) flat: Gauss-Newton's.

    For a linear layer under softmax cross-entropy that is the Hessian itself; the prior is normal
    with this precision (MacKay, 1992; Daxberger et al., NeurIPS 2021).
    """
    inputs = _with_one(features)
    p = jax.nn.softmax(inputs @ _matrix(layer))
    curvature = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]
    size = p.shape[-1] * inputs.shape[-1]
    hessian = jnp.einsum("nf,ncd,ng->cfdg", inputs, curvature, inputs).reshape(size, size)
    return jnp.linalg.inv(hessian + precision * jnp.eye(size))


def laplace_logits(layer, covariance, features, key, samples: int):
    """Logits drawn from the Laplace approximation: (samples, rows, classes), by one pass."""
    inputs = _with_one(features)
    mean, shape = inputs @ _matrix(layer), (layer["bias"].size, inputs.shape[-1]) * 2
    of_logits = jnp.einsum("nf,cfdg,ng->ncd", inputs, covariance.reshape(shape), inputs)
    root = jnp.linalg.cholesky(of_logits + 1e-5 * jnp.eye(shape[0]))
    return mean + jnp.einsum("ncd,snd->snc", root, jax.random.normal(key, (samples, *mean.shape)))


def _with_one(features):
    return jnp.concatenate([features, jnp.ones((len(features), 1))], axis=1)


def _matrix(layer):
    return jnp.concatenate([layer["weights"], layer["bias"][None]])


@functools.partial(jax.jit, static_argnames="coverage")
def quality(p, labels, coverage: float = 0.8) -> dict[str, jax.Array]:
    """Accuracy, calibration and selective prediction of probabilities (rows, classes)."""
    right, confidence = p.argmax(-1) == labels, p.max(-1)
    answered = jnp.argsort(-confidence)[: round(coverage * len(labels))]
    return {
        "accuracy": right.mean(),
        "NLL": negative_log_likelihood(jnp.maximum(p, 1e-12), labels),
        "ECE": expected_calibration_error(p, labels),
        "Brier": brier_score(p, labels),
        "selective": right[answered].mean(),
    }


@functools.partial(jax.jit, static_argnames="repeats")
def calibrated_ece(p, key, repeats: int = 20) -> jax.Array:
    """The ECE that so many rows show if every probability is exactly right: it is not 0."""
    labels = jax.random.categorical(key, jnp.log(p), shape=(repeats, len(p)))
    return jax.vmap(lambda drawn: expected_calibration_error(p, drawn))(labels).mean()


@jax.jit
def told_apart(known, unknown) -> jax.Array:
    """AUROC of a score that should be higher for the unknown."""
    scores = jnp.concatenate([known, unknown])
    return auroc(scores, jnp.arange(len(scores)) >= len(known))


def differences(more: list[dict], less: list[dict]) -> dict[str, Interval]:
    """more - less by name, each list having one dictionary a seed."""
    return {
        name: interval([a[name] - b[name] for a, b in zip(more, less, strict=True)])
        for name in more[0]
    }


def reliability(p, labels, bins: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Mean confidence and accuracy of bins of equally many rows, in order of confidence."""
    confidence, right = np.asarray(p.max(-1)), np.asarray(p.argmax(-1) == labels)
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    means = [(confidence[part].mean(), right[part].mean()) for part in parts]
    return tuple(np.array(means).T)
