"""Charts of the claims: panels, and means with their 95 % intervals."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.claim import Interval


def panels(*widths: float, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, of these widths in inches."""
    figure = Figure(figsize=(sum(widths), height), layout="constrained")
    return figure, list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])


def points(axes: Axes, x, intervals: Iterable[Interval], label: str, style="o-", **options):
    """Draw means, joined by a line, with their intervals as error bars."""
    mean, low, high = np.array(list(intervals)).T
    axes.errorbar(x, mean, (mean - low, high - mean), fmt=style, label=label, capsize=2, **options)


def lines(
    axes: Axes, x, series: Mapping[Any, Iterable[Interval]], style="o-", spacing=0.0, **labels
):
    """Draw a line for each series, shifted by `spacing`; `labels` go to axes.set."""
    for i, (label, intervals) in enumerate(series.items()):
        x_shifted = np.asarray(x) + spacing * (i - (len(series) - 1) / 2)
        points(axes, x_shifted, intervals, str(label), style)
    _label_axes(axes, len(series), labels)


def bars(axes: Axes, groups: Mapping[Any, Mapping[Any, Interval]], **labels):
    """Draw a group of bars for each of `groups`; all groups have the same series."""
    series = list(next(iter(groups.values())))
    width = 0.8 / len(series)
    for i, label in enumerate(series):
        mean, low, high = np.array([cells[label] for cells in groups.values()]).T
        positions = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        error = (mean - low, high - mean)
        axes.bar(positions, mean, 0.95 * width, yerr=error, capsize=2, label=str(label))
    axes.set_xticks(range(len(groups)), [str(name) for name in groups])
    _label_axes(axes, len(series), labels)


def forest(axes: Axes, cells: Mapping[Any, Interval], **labels):
    """Draw a row for each cell and a line at 0: blue is above it, red below, grey is undecided."""
    for i, cell in enumerate(cells.values()):
        color = "C0" if cell.positive else "C3" if cell.negative else "gray"
        error = [[cell.mean - cell.low], [cell.high - cell.mean]]
        axes.errorbar(cell.mean, i, xerr=error, fmt="o", color=color, capsize=2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(cells)), [str(name) for name in cells])
    axes.invert_yaxis()
    axes.set(**labels)


def _label_axes(axes: Axes, series: int, labels: dict[str, Any]):
    axes.set(**labels)
    if series > 1:
        axes.legend(fontsize=8)
