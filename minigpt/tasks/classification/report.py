"""The report of a classifier's test: tables, JSON and a plot of the confusion matrix."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from minigpt.atomic_write import write_atomic
from minigpt.tasks.classification.metrics import ClassificationScores

MAX_CLASSES_IN_PLOT = 20  # with more classes, the cells of the plot have no room for numbers
MAX_CLASSES_IN_TABLE = 10  # with more classes, the table has no room for the confusion matrix


def print_report(scores: dict[str, ClassificationScores], console: Console) -> None:
    """Print the scores of all models, then those of the last model by class."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("test part", no_wrap=True)
    for name in ("accuracy", "macro-F1"):
        table.add_column(name, justify="right")
    for name, model_scores in scores.items():
        table.add_row(name, f"{model_scores.accuracy:.3f}", f"{model_scores.macro_f1:.3f}")
    console.print(table)
    name, last = list(scores.items())[-1]
    console.print(_class_table(name, last))


def _class_table(name: str, scores: ClassificationScores) -> Table:
    """The scores of each class, with its row of the confusion matrix."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(name, no_wrap=True)
    for column in ("precision", "recall", "F1", "texts"):
        table.add_column(column, justify="right")
    has_confusion = len(scores.classes) <= MAX_CLASSES_IN_TABLE
    if has_confusion:
        for label in scores.classes:
            table.add_column(Text(f"as {label}"), justify="right")
    for (label, class_scores), row in zip(scores.classes.items(), scores.confusion, strict=True):
        numbers = [f"{class_scores[column]:.3f}" for column in ("precision", "recall", "f1")]
        counts = [str(count) for count in row] if has_confusion else []
        table.add_row(Text(label), *numbers, str(class_scores["support"]), *counts)
    return table


def format_evaluation(evaluation: dict[str, float]) -> str:
    """An evaluation on the validation part, as one line."""
    return (
        f"step {evaluation['step']:>6}  training loss {evaluation['train_loss']:.4f}  validation: "
        f"loss {evaluation['val_loss']:.4f}, accuracy {evaluation['val_accuracy']:.3f}, macro-F1 "
        f"{evaluation['val_macro_f1']:.3f}"
    )


def save_report(
    scores: dict[str, ClassificationScores], description: dict[str, Any], folder: Path
) -> None:
    """Write report.json, and the last model's confusion matrix as confusion.png."""
    test = {name: model_scores._asdict() for name, model_scores in scores.items()}
    report = json.dumps(description | {"test": test}, indent=1) + "\n"
    write_atomic(folder / "report.json", report.encode())
    name, last = list(scores.items())[-1]
    plot_confusion(last, folder / "confusion.png", f"{name}: confusion matrix of the test part")


def plot_confusion(scores: ClassificationScores, path: Path, title: str) -> None:
    """Plot the confusion matrix: the color shows the share of each true label's texts."""
    labels = [label if len(label) <= 24 else label[:23] + "…" for label in scores.classes]
    counts = np.asarray(scores.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(3.5 + 0.6 * len(labels), 20)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), labels)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a label is not TeX
    axes.set(xlabel="predicted", ylabel="true", title=title)
    for row, column in np.ndindex(counts.shape) if len(labels) <= MAX_CLASSES_IN_PLOT else ():
        share = shares[row, column]
        text = f"{counts[row, column]:,}\n{share:.0%}" if len(labels) <= 8 else f"{share:.0%}"
        color = "white" if share > 0.6 else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the true label's texts", shrink=0.8)
    png = io.BytesIO()
    # A character that the font lacks appears as a box; the tables and report.json have it.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure.savefig(png, dpi=120, format="png")
    write_atomic(path, png.getvalue())
