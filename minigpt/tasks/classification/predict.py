"""Label new texts with a trained classifier, by choice with Monte Carlo dropout."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from dropout_jax import fold, mc_dropout, mutual_information
from minigpt.config import DropoutConfig, require_seed
from minigpt.tasks.classification.classifier import TextClassifier
from minigpt.tasks.classification.data import PaddedRows


class Prediction(NamedTuple):
    """The label of a text."""

    label: str
    probability: float
    """of the label: the mean over the passes, if there are passes"""
    information: float | None
    """mutual information of the passes in nats: how much they disagree; None without passes"""
    probabilities: dict[str, float]
    """of every label"""


def predict_texts(
    classifier: TextClassifier, texts: list[str], *, passes: int = 0, seed: int = 0
) -> list[Prediction]:
    """The most likely label of each text.

    With `passes`, the probabilities are the mean of that many forward passes with dropout at the
    rates of training, and `information` is their mutual information (dropout_jax.uncertainty).
    The same seed gives the same numbers.
    """
    if passes == 1 or passes < 0:
        raise ValueError(
            f"passes={passes} is not allowed: it must be 0, for none, or at least 2, because the "
            "passes are compared with each other."
        )
    require_seed(seed)
    if (
        passes
        and classifier.config.dropout == DropoutConfig()
        and not classifier.settings.head_dropout
    ):
        raise ValueError(
            f"passes={passes} is not allowed: the classifier was trained without dropout, so all "
            "passes would be the same. Leave --passes out, or train it with --dropout 0.1."
        )
    rows = classifier.rows(texts)
    if passes:
        probabilities, information = _monte_carlo(classifier, rows, passes, seed)
    else:
        probabilities = np.asarray(jax.nn.softmax(classifier.logits(rows)))
        information = [None] * len(texts)
    return [
        Prediction(
            classifier.labels[int(p.argmax())],
            float(p.max()),
            None if info is None else float(info),
            dict(zip(classifier.labels, map(float, p), strict=True)),
        )
        for p, info in zip(probabilities, information, strict=True)
    ]


def _monte_carlo(
    classifier: TextClassifier, rows: PaddedRows, passes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean probabilities (texts, labels) and mutual information (texts,), batch by batch."""
    model, key = classifier.model, fold(jax.random.key(seed), "predict")
    size, probabilities, information = classifier.settings.batch_size, [], []

    @jax.jit
    def sample(tokens: jax.Array, lengths: jax.Array, key: jax.Array) -> jax.Array:
        return mc_dropout(
            lambda k: jax.nn.softmax(model(tokens, lengths, key=k)), key, passes, batch_size=8
        )

    for first in range(0, len(rows.lengths), size):
        indices = np.resize(np.arange(first, min(first + size, len(rows.lengths))), size)
        samples = sample(rows.tokens[indices], rows.lengths[indices], fold(key, first // size))
        probabilities.append(np.asarray(samples.mean(0)))
        information.append(np.asarray(mutual_information(samples)))
    count = len(rows.lengths)
    return np.concatenate(probabilities)[:count], np.concatenate(information)[:count]
