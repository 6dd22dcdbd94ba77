"""What a classifier's test came to: tables, JSON and a picture of the confusion matrix."""

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

MOST_WRITTEN = 20  # classes whose cells still have room for a number


def print_report(found: dict[str, ClassificationScores], console: Console) -> None:
    """Print the models beside each other, then the last one's classes."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("test part", no_wrap=True)
    for name in ("accuracy", "macro-F1"):
        table.add_column(name, justify="right")
    for name, each in found.items():
        table.add_row(name, f"{each.accuracy:.3f}", f"{each.macro_f1:.3f}")
    console.print(table)
    name, last = list(found.items())[-1]
    console.print(_classes(name, last))


def _classes(name: str, found: ClassificationScores) -> Table:
    """Per class, with the row of the confusion matrix."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(name, no_wrap=True)
    for column in ("precision", "recall", "F1", "texts"):
        table.add_column(column, justify="right")
    written = len(found.classes) <= MOST_WRITTEN // 2
    if written:
        for label in found.classes:
            table.add_column(Text(f"as {label}"), justify="right")
    for (label, each), row in zip(found.classes.items(), found.confusion, strict=True):
        numbers = [f"{each[column]:.3f}" for column in ("precision", "recall", "f1")]
        counts = [str(count) for count in row] if written else []
        table.add_row(Text(label), *numbers, str(each["support"]), *counts)
    return table


def format_evaluation(look: dict[str, float]) -> str:
    """A look at the validation part, as a line."""
    return (
        f"step {look['step']:>6}  loss of the batches {look['train_loss']:.4f}  validation: loss "
        f"{look['val_loss']:.4f}, accuracy {look['val_accuracy']:.3f}, macro-F1 "
        f"{look['val_macro_f1']:.3f}"
    )


def save_report(
    found: dict[str, ClassificationScores], about: dict[str, Any], folder: Path
) -> None:
    """Write report.json, and the last model's confusion matrix as confusion.png."""
    everything = about | {"test": {name: each._asdict() for name, each in found.items()}}
    write_atomic(folder / "report.json", (json.dumps(everything, indent=1) + "\n").encode())
    name, last = list(found.items())[-1]
    plot_confusion(last, folder / "confusion.png", f"{name}: confusion matrix of the test part")


def plot_confusion(found: ClassificationScores, path: Path, title: str) -> None:
    """Draw the confusion matrix: shares of each true label as shades, counts as numbers."""
    labels = [label if len(label) <= 24 else label[:23] + "…" for label in found.classes]
    counts = np.asarray(found.confusion)
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
    for row, column in np.ndindex(counts.shape) if len(labels) <= MOST_WRITTEN else ():
        share = shares[row, column]
        text = f"{counts[row, column]:,}\n{share:.0%}" if len(labels) <= 8 else f"{share:.0%}"
        colour = "white" if share > 0.6 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the true label's texts", shrink=0.8)
    png = io.BytesIO()
    with warnings.catch_warnings():  # a box stands for it here; the tables and report.json have it
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure.savefig(png, dpi=120, format="png")
    write_atomic(path, png.getvalue())
