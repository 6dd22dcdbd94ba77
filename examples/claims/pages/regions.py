"""The charts of the findings: which cells each has, and where its claim wants their intervals.

A finding that has its cells as data says both itself. For one that has them only in its text, the
table below says which panels of the text are drawn, and the region of each. Without an entry all
panels are drawn, and the claim wants every interval above 0.
"""

from typing import NamedTuple

from common.claim import Interval, is_between
from common.rates import parse_interval
from pages.cells import Cell, Panel, parse_panels, split_verdict


class Region(NamedTuple):
    """Where a claim wants the whole interval: above `low` and below `high`."""

    low: float | None
    high: float | None


class Row(NamedTuple):
    """A cell of a chart, and whether the claim holds there."""

    cell: Cell
    holds: bool


class Chart(NamedTuple):
    """Rows on one axis."""

    heading: str
    rows: list[Row]
    region: Region | None


ABOVE, BELOW = Region(0, None), Region(None, 0)
WITHIN_A_POINT, BELOW_HALF_A_POINT = Region(-1, 1), Region(None, 0.5)

# For a script and the number of a finding: the panels of its text to draw, each with its region
# (None: it has several parts, and only the verdict says where it holds). Without panels it is text.
PANELS: dict[tuple[str, int], dict[int, Region | None]] = {
    ("scaling", 2): {},
    ("randomness", 0): {},
    ("unscaled_softmax", 1): {0: Region(99.9, None)},
    ("sub_networks", 0): {0: WITHIN_A_POINT},
    ("monte_carlo_samples", 0): {0: ABOVE, 1: WITHIN_A_POINT},
    ("monte_carlo_samples", 1): {0: BELOW, 1: BELOW},
    ("co_adaptation", 1): {1: ABOVE},
    ("feature_correlation", 0): {1: ABOVE},
    **{("data_size", i): {0: BELOW} for i in (0, 3, 4)},
    ("gpt_overfitting", 0): {},
    ("underfitting", 0): {0: BELOW},
    **{("gpt_rates", i): {0: BELOW} for i in range(1, 6)},
    **{("placement", i): {0: BELOW} for i in range(4)},
    **{("interactions", i): {} for i in range(6)},
    ("variance_shift", 1): {0: Region(1, None)},
    ("batch_norm", 0): {0: BELOW},
    ("schedules", 4): {1: BELOW},
    ("schedules", 5): {0: BELOW_HALF_A_POINT},
    ("cost", 0): {0: Region(1.5, 2.5)},
    ("cost", 1): {0: Region(2, 3)},
    ("step_time", 0): {0: Region(None, 1.1)},
    ("norm_order", 3): {0: Region(None, 0.05)},
    ("features", 0): {},
    ("feature_maps", 0): {1: ABOVE},
    ("selu_moments", 0): {},
    ("selu_moments", 1): {0: Region(-0.1, 0.1), 1: Region(0.8, 1.5)},
    ("selu_moments", 2): {0: None, 1: None},
    ("selu", 0): {3: ABOVE},
    ("drop_path", 0): {1: ABOVE},
    **{("learned_rates", i): {0: BELOW} for i in range(2)},
    ("r_drop", 4): {0: BELOW},
    ("genre", 2): {0: BELOW},
    ("uncertainty", 2): {},
    **{("gpt_uncertainty", i): {} for i in range(2)},
    ("seq2seq", 4): {0: Region(99, None)},
    ("encoder_masked_lm", 2): {0: BELOW},
    ("vision", 3): {0: BELOW_HALF_A_POINT},
    **{("recurrent_lm", i): {0: BELOW} for i in range(4)},
}


def charts_of(name: str, number: int, finding: dict) -> list[Chart]:
    """The charts of a finding; none if it has fewer than two cells."""
    if finding.get("cells"):
        pairs = [_read_cells(finding["cells"])]
    else:
        panels = parse_panels(finding["measured"])
        chosen = PANELS.get((name, number), dict.fromkeys(range(len(panels)), ABOVE))
        pairs = [(panels[i], region) for i, region in chosen.items()]
    if sum(len(panel.cells) for panel, _ in pairs) < 2:
        return []
    labels = list(dict.fromkeys(cell.label for panel, _ in pairs for cell in panel.cells))
    holds = split_verdict(finding["verdict"], labels)
    return [_make_chart(panel, region, holds) for panel, region in pairs]


def _read_cells(record: dict) -> tuple[Panel, Region]:
    """The cells that a finding has as data."""
    scale = 100 if record["spec"].endswith("%") else 1
    cells = []
    for label, value in record["values"].items():
        interval = parse_interval(value)
        mean, low, high = (scale * number for number in interval)
        cells.append(Cell(label, mean, low, high, format(interval, record["spec"])))
    low, high = (None if bound is None else scale * bound for bound in record["bounds"])
    return Panel(record["what"], cells), Region(low, high)


def _make_chart(panel: Panel, region: Region | None, holds: dict[str, bool]) -> Chart:
    rows = [Row(cell, _holds_at(cell, region, holds[cell.label])) for cell in panel.cells]
    return Chart(panel.heading.rpartition("; ")[2], rows, region)


def _holds_at(cell: Cell, region: Region | None, by_verdict: bool) -> bool:
    """Whether the interval is in the region; the verdict decides where rounding hides it."""
    if region is None or region.low == cell.low or region.high == cell.high:
        return by_verdict
    return is_between(Interval(cell.mean, cell.low, cell.high), region)
