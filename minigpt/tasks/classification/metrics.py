"""What predicted labels are worth, by scikit-learn's measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

_ZERO: Any = {"zero_division": 0}  # what is undefined, such as the precision of a label never given


class ClassificationScores(NamedTuple):
    """What predictions are worth."""

    accuracy: float
    macro_f1: float
    classes: dict[str, dict[str, float]]
    """precision, recall, F1 and support of each label"""
    confusion: list[list[int]]
    """counts: rows are true labels, columns predicted ones, both in the labels' order"""


def classification_scores(
    truth: list[str], predicted: list[str], labels: Sequence[str]
) -> ClassificationScores:
    """Compare with the truth."""
    matrix = confusion_matrix(truth, predicted, labels=labels)
    columns = precision_recall_fscore_support(truth, predicted, labels=labels, **_ZERO)
    columns = *columns[:3], matrix.sum(axis=1)  # its own supports are floats if a label has none
    names, lists = (
        ("precision", "recall", "f1", "support"),
        [np.asarray(c).tolist() for c in columns],
    )
    classes = {
        label: dict(zip(names, row, strict=True))
        for label, *row in zip(labels, *lists, strict=True)
    }
    accuracy = float(np.trace(matrix) / matrix.sum())
    return ClassificationScores(accuracy, macro_f1(truth, predicted), classes, matrix.tolist())


def macro_f1(truth: Any, predicted: Any) -> float:
    """The mean of the F1 of the classes that there are, in the truth or among the answers."""
    return float(f1_score(truth, predicted, average="macro", **_ZERO))
