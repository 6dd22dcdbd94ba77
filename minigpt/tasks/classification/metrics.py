"""Scores of predicted labels, computed with scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

# Undefined scores are 0, such as the precision of a label that is never predicted.
_ZERO_DIVISION: Any = {"zero_division": 0}


class ClassificationScores(NamedTuple):
    """Scores of predicted labels."""

    accuracy: float
    macro_f1: float
    classes: dict[str, dict[str, float]]
    """precision, recall, F1 and support of each label"""
    confusion: list[list[int]]
    """counts; rows are true labels, columns predicted labels, both in the order of `classes`"""


def classification_scores(
    true_labels: list[str], predicted: list[str], labels: Sequence[str]
) -> ClassificationScores:
    """Compare predicted labels with the true ones; `labels` are all classes."""
    matrix = confusion_matrix(true_labels, predicted, labels=labels)
    columns = precision_recall_fscore_support(
        true_labels, predicted, labels=labels, **_ZERO_DIVISION
    )
    # The support from the matrix: scikit-learn's is a float if a label has no texts.
    columns = *columns[:3], matrix.sum(axis=1)
    names: tuple[str, ...] = ("precision", "recall", "f1", "support")
    lists = [np.asarray(column).tolist() for column in columns]
    classes: dict[str, dict[str, float]] = {
        label: dict(zip(names, row, strict=True))
        for label, *row in zip(labels, *lists, strict=True)
    }
    return ClassificationScores(
        accuracy=float(np.trace(matrix) / matrix.sum()),
        macro_f1=macro_f1(true_labels, predicted),
        classes=classes,
        confusion=matrix.tolist(),
    )


def macro_f1(true_labels: Sequence[Any] | np.ndarray, predicted: Any) -> float:
    """The mean F1 of all classes among the true or the predicted labels."""
    return float(f1_score(true_labels, predicted, average="macro", **_ZERO_DIVISION))
