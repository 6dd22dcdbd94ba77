"""Common parts of the claims on uncertainty: last-layer Laplace approximation, measures, tables."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from common import charts
from common.claim import Interval, interval
from dropout_jax import mutual_information, predictive_entropy
from dropout_jax.calibration import (
    auroc,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)

# Scores of stacked probabilities; they should be higher for out-of-distribution inputs.
SCORES = {
    "confidence": lambda stack: 1 - stack.mean(0).max(-1),
    "entropy": predictive_entropy,
    "information": mutual_information,
}


def laplace_covariance(layer, features, precision):
    """Gauss-Newton covariance of the last layer's weights and biases, flat (classes, inputs + 1).

    For a linear layer under softmax cross-entropy this is the exact Hessian's; the prior is normal
    with this precision (MacKay, 1992; Daxberger et al., NeurIPS 2021).
    """
    inputs = _with_one(features)
    p = jax.nn.softmax(inputs @ _matrix(layer))
    curvature = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]
    size = p.shape[-1] * inputs.shape[-1]
    hessian = jnp.einsum("nf,ncd,ng->cfdg", inputs, curvature, inputs).reshape(size, size)
    return jnp.linalg.inv(hessian + precision * jnp.eye(size))


def laplace_logits(layer, covariance, features, key, samples: int):
    """Samples of logits from the Laplace approximation, (samples, rows, classes), in one pass."""
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
    """The ECE of as many rows if every probability is exactly right; it is above 0."""
    labels = jax.random.categorical(key, jnp.log(p), shape=(repeats, len(p)))
    return jax.vmap(lambda drawn: expected_calibration_error(p, drawn))(labels).mean()


@jax.jit
def ood_auroc(known, unknown) -> jax.Array:
    """AUROC of a score that should be higher for out-of-distribution inputs."""
    scores = jnp.concatenate([known, unknown])
    return auroc(scores, jnp.arange(len(scores)) >= len(known))


def summarize(stacks: dict[str, dict], labels) -> dict[str, dict]:
    """Summarize each method, from stacks[set][method] of shape (samples, rows, classes).

    The first set has labels: quality and reliability are measured on it, and the scores should
    distinguish the other sets from it. A single sample has no mutual information.
    """
    known, *others = stacks
    summaries = {}
    for method, stack in stacks[known].items():
        scores = {name: SCORES[name] for name in list(SCORES)[: 2 if len(stack) == 1 else 3]}
        aurocs = {
            name: {other: ood_auroc(score(stack), score(stacks[other][method])) for other in others}
            for name, score in scores.items()
        }
        mean = stack.mean(0)
        summaries[method] = jax.tree.map(float, {"quality": quality(mean, labels), "AUROC": aurocs})
        summaries[method]["reliability"] = reliability(mean, labels, bins=5)
    return summaries


def differences(more: list[dict], less: list[dict]) -> dict[str, Interval]:
    """Intervals of more - less by name; each list has one dictionary for each seed."""
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


def decreases(runs: list[dict], worse: str, better: str, names, where="quality"):
    """The decreases of the measures from the worse to the better method, paired by seed."""
    changes = differences(*([run[method][where] for run in runs] for method in (worse, better)))
    return {name: changes[name] for name in names}


def table(costs: dict, passes: int, columns: Callable[[str], dict[str, str]]) -> list[dict]:
    """Every method with its training runs, forward passes, and further columns."""
    return [
        {"method": method, "training runs": trained, "passes": forward.format(passes)}
        | columns(method)
        for method, (trained, forward) in costs.items()
    ]


def columns(qualities: list[dict], suffix: str = "") -> dict[str, str]:
    """A table's columns of a method's quality: means over seeds."""
    mean = {name: float(np.mean([each[name] for each in qualities])) for name in qualities[0]}
    cells = {f"accuracy{suffix}": f"{mean['accuracy']:.1%}"}
    cells |= {f"{name}{suffix}": f"{mean[name]:.3f}" for name in ("NLL", "ECE", "Brier")}
    return cells | {f"accuracy at 80 %{suffix}": f"{mean['selective']:.1%}"}


def auroc_columns(aurocs: list[dict[str, dict[str, float]]], scores=tuple(SCORES)):
    """A table's columns of a method's AUROC by score and unknown set: means over seeds."""
    cells = {}
    for unknown in aurocs[0]["confidence"]:
        of_scores = [
            f"{np.mean([each[score][unknown] for each in aurocs]):.3f}"
            for score in scores
            if score in aurocs[0]
        ]
        cells[f"AUROC, {unknown}: {', '.join(scores)}"] = ", ".join(of_scores)
    return cells


def draw_reliability(axes: Axes, curves: dict[str, list], title: str):
    """Draw the mean over seeds of the results of `reliability`, for each method."""
    means = {method: np.mean(each, axis=0) for method, each in curves.items()}
    confidences = np.stack([confidence for confidence, _ in means.values()])
    ends = [confidences.min(), confidences.max()]
    axes.plot(ends, ends, color="0.7", label="exactly right")
    for method, (confidence, accuracy) in means.items():
        axes.plot(confidence, accuracy, "o-", markersize=4, label=method)
    axes.set(xlabel="confidence", ylabel="accuracy", title=title)
    axes.legend(fontsize=8)


def draw_auroc(axes: Axes, series: dict[str, list[dict[str, float]]], title: str):
    """Draw bars by unknown set; a series is a list of AUROC by set, one entry for each seed."""
    unknown = next(iter(series.values()))[0]
    groups = {
        name: {label: interval([each[name] for each in runs]) for label, runs in series.items()}
        for name in unknown
    }
    charts.bars(axes, groups, ylabel="AUROC (0.5: by chance)", title=title)
    axes.axhline(0.5, color="black", linewidth=0.8)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.08), "fontsize": 8}
    axes.legend(ncols=3 if len(series) > 4 else 2, **below)
