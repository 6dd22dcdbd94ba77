"""The cells of a finding: the settings in which its claim is measured, and their intervals."""

import re
from typing import NamedTuple

from common.claim import FAILS, HOLDS, ONLY_WHEN

NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?%?"
INTERVAL = re.compile(rf"(?<![\w.])({NUMBER}) \(({NUMBER}) to ({NUMBER})\)")


class Cell(NamedTuple):
    """A setting and its mean with the 95 % interval, as numbers and as they are written."""

    label: str
    mean: float
    low: float
    high: float
    text: str


class Panel(NamedTuple):
    """Cells that measure the same quantity."""

    heading: str
    cells: list[Cell]


def parse_panels(measured: str) -> list[Panel]:
    """The cells of a sentence such as "Points, by rate: 0.1: +2.0 (+1.0 to +3.0), 0.2: ...".

    A new heading after a semicolon or a full stop begins a panel. So does a word before the first
    of several labels: "5 samples 1: ..., 2: ...; 50 samples 1: ..., 2: ..." are two panels.
    """
    panels: list[Panel] = []
    end = 0
    for match in INTERVAL.finditer(measured):
        between = measured[end : match.start()].rstrip(" :")
        heading, _, label = between.lstrip(";,. ").rpartition(": ")
        begins = bool(heading) or not panels or between.startswith(";")
        if begins:
            panels.append(Panel(heading, []))
        mean, low, high = (float(text.strip("%").replace(",", "")) for text in match.groups())
        panels[-1].cells.append(Cell(label, mean, low, high, match[0]))
        end = match.end()
    return _join_single_cells([_move_prefix(panel) for panel in panels])


def _move_prefix(panel: Panel) -> Panel:
    """Move a word before the first label to the heading if the other labels are one word each."""
    first, *others = panel.cells
    prefix, _, label = first.label.rpartition(" ")
    if not prefix or not others or any(" " in cell.label for cell in others):
        return panel
    heading = ": ".join(filter(None, [panel.heading, prefix]))
    return Panel(heading, [first._replace(label=label), *others])


def _join_single_cells(panels: list[Panel]) -> list[Panel]:
    """Put a cell that has no heading and no neighbour into the panel before it."""
    joined: list[Panel] = []
    for panel in panels:
        if joined and not panel.heading and len(panel.cells) == 1:
            joined[-1].cells.extend(panel.cells)
        else:
            joined.append(panel)
    return joined


def split_verdict(verdict: str, labels: list[str]) -> dict[str, bool]:
    """For each label whether the claim holds there: the inverse of common.claim.verdict_by."""
    if verdict in (HOLDS, FAILS):
        return dict.fromkeys(labels, verdict == HOLDS)
    _, _, failing = verdict.removeprefix(ONLY_WHEN).rpartition(" (not ")
    holds = _match_failing(labels, failing.removesuffix(")") + ", ")
    if holds is None:
        raise ValueError(f"verdict={verdict!r} names cells that are not among {labels}.")
    return holds


def _match_failing(labels: list[str], failing: str) -> dict[str, bool] | None:
    """Which labels are not in the list `failing`, which has them in order; None if it has others.

    A label may begin like another, so both answers are tried.
    """
    if not labels:
        return None if failing else {}
    first, *others = labels
    if failing.startswith(f"{first}, "):
        rest = _match_failing(others, failing[len(first) + 2 :])
        if rest is not None:
            return {first: False, **rest}
    rest = _match_failing(others, failing)
    return None if rest is None else {first: True, **rest}
