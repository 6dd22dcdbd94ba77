"""What the claims' pictures share: panels, and means with their 95 % intervals."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.claim import Interval


def panels(*widths: float, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """A figure and its panels side by side, so many inches wide."""
    figure = Figure(figsize=(sum(widths), height), layout="constrained")
    return figure, list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])


def points(axes: Axes, x, intervals: Iterable[Interval], label: str, style="o-", **more):
    """Means, joined, with their intervals as bars."""
    mean, low, high = np.array(list(intervals)).T
    axes.errorbar(x, mean, (mean - low, high - mean), fmt=style, label=label, capsize=2, **more)


def lines(axes: Axes, x, series: dict[Any, Iterable[Interval]], style="o-", apart=0.0, **names):
    """A line a series, `apart` from the next; `names` are those of axes.set."""
    for i, (label, intervals) in enumerate(series.items()):
        at = np.asarray(x) + apart * (i - (len(series) - 1) / 2)
        points(axes, at, intervals, str(label), style)
    _named(axes, len(series), names)


def bars(axes: Axes, groups: dict[Any, dict[str, Interval]], **names):
    """A group of bars side by side for each of `groups`; all have the same series."""
    series = list(next(iter(groups.values())))
    width = 0.8 / len(series)
    for i, label in enumerate(series):
        mean, low, high = np.array([cells[label] for cells in groups.values()]).T
        at = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        error = (mean - low, high - mean)
        axes.bar(at, mean, 0.95 * width, yerr=error, capsize=2, label=str(label))
    axes.set_xticks(range(len(groups)), [str(name) for name in groups])
    _named(axes, len(series), names)


def forest(axes: Axes, cells: dict[Any, Interval], **names):
    """A row a cell, and a line at 0; blue is above it, red below, grey may be either."""
    for i, cell in enumerate(cells.values()):
        color = "C0" if cell.positive else "C3" if cell.negative else "gray"
        error = [[cell.mean - cell.low], [cell.high - cell.mean]]
        axes.errorbar(cell.mean, i, xerr=error, fmt="o", color=color, capsize=2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(cells)), [str(name) for name in cells])
    axes.invert_yaxis()
    axes.set(**names)


def _named(axes: Axes, series: int, names: dict[str, Any]):
    axes.set(**names)
    if series > 1:
        axes.legend(fontsize=8)
