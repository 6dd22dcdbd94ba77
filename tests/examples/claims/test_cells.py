"""The cells of the findings: read from their text, from their data, and from their verdicts."""

import itertools

import numpy as np
import pytest
from experiments import ROOT, load

LABELS = ["0.1", "0.1, R-Drop, new dates", "1,000 characters (0.02 against 0)", "all seven"]


@pytest.fixture(scope="module")
def claim():
    return load("common.claim")


@pytest.fixture(scope="module")
def cells():
    return load("pages.cells")


@pytest.fixture(scope="module")
def regions():
    return load("pages.regions")


@pytest.fixture(scope="module")
def findings():
    """Every finding of docs/claims: the script's name, its number, and the record."""
    results = load("pages.chapters").load_results(ROOT / "docs" / "claims")
    return [(name, i, f) for name, each in results.items() for i, f in enumerate(each["findings"])]


@pytest.mark.parametrize("spec", ["+.3f", ".2%", ".1f", "+.0%"])
def test_the_text_of_cells_is_read_back(claim, cells, spec):
    rng = np.random.default_rng(0)
    intervals = [claim.interval(rng.normal(scale=30, size=5)) for _ in LABELS]
    values = dict(zip(LABELS, intervals, strict=True))
    finding = claim.by_cell("A claim", "a source", "Points, by rate", values, "it is", spec)
    [panel] = cells.parse_panels(finding.measured)
    assert panel.heading == "Points, by rate"
    scale = 100 if spec.endswith("%") else 1
    for cell, (label, value) in zip(panel.cells, values.items(), strict=True):
        assert (cell.label, cell.text) == (label, format(value, spec))
        expected = [float(format(scale * x, spec.replace("%", "f"))) for x in value]
        assert [cell.mean, cell.low, cell.high] == pytest.approx(expected, abs=1e-9)


def test_panels_begin_at_headings_and_at_words_before_the_labels(cells):
    text = "Error, by layers: 5 samples 1: 1.0% (0.4 to 1.6%), 2: 1,234.0% (-3 to 1,240.0%); "
    text += "50 samples 1: 0.0 (-0.3 to 0.5), 2: 1e-3 (0 to 2e-3). Minus that: a b: +1 (+0 to +2)"
    panels = cells.parse_panels(text)
    assert [panel.heading for panel in panels] == [
        "Error, by layers: 5 samples",
        "50 samples",
        "Minus that",
    ]
    labels = [[cell.label for cell in panel.cells] for panel in panels]
    assert labels == [["1", "2"], ["1", "2"], ["a b"]]
    assert panels[0].cells[1][1:4] == (1234, -3, 1240)
    assert panels[1].cells[1][1:4] == (0.001, 0, 0.002)


def test_a_cell_without_a_heading_is_beside_the_one_before(cells):
    [panel] = cells.parse_panels("one minus other: F1 +0.1 (+0.0 to +0.2); accuracy -2 (-3 to -1)")
    assert panel.heading == "one minus other"
    assert [cell.label for cell in panel.cells] == ["F1", "accuracy"]


def test_a_text_without_intervals_has_no_cells(cells):
    assert cells.parse_panels("all bits equal at 11 of 11 rates (the claim: all)") == []


def test_a_verdict_is_split_into_its_cells(claim, cells):
    for holds in itertools.product([False, True], repeat=len(LABELS)):
        expected = dict(zip(LABELS, holds, strict=True))
        verdict = claim.verdict_by("the setting is", expected)
        assert cells.split_verdict(verdict, LABELS) == expected
    with pytest.raises(ValueError, match="names cells that are not among"):
        cells.split_verdict("holds only when it is a (not b)", ["a", "c"])


def test_cells_as_data_give_the_chart_of_their_text(claim, regions):
    """A record with cells and one without are drawn alike, but for digits that the text lacks."""
    values = {"a": claim.Interval(0.02, 0.01, 0.03), "b": claim.Interval(0.01, -0.01, 0.03)}
    for spec, bounds in (("+.3f", (0, None)), (".1%", (None, 0.02)), (".2f", (0, 0.05))):
        finding = claim.by_bounds("It is", "them", "Gain", values, "it is", spec, bounds)
        record = claim.to_json(claim.dataclasses.asdict(finding))
        [drawn] = regions.charts_of("none", 0, record)
        [chart] = regions.charts_of("none", 0, record | {"cells": None})
        assert drawn.heading == chart.heading == "Gain"
        for row, other in zip(drawn.rows, chart.rows, strict=True):
            assert (row.cell.label, row.cell.text) == (other.cell.label, other.cell.text)
            assert row.cell[1:4] == pytest.approx(other.cell[1:4])
        scale = 100 if spec.endswith("%") else 1
        assert drawn.region == tuple(None if x is None else scale * x for x in bounds)
        assert [row.holds for row in drawn.rows] == [
            claim.is_between(x, bounds) for x in values.values()
        ]


def test_every_chart_agrees_with_its_verdict(claim, cells, regions, findings):
    """A claim holds at a label if it holds in each row with that label; conditions have a chart."""
    charted = 0
    for name, number, finding in findings:
        charts = regions.charts_of(name, number, finding)
        rows = [row for chart in charts for row in chart.rows]
        holds = {row.cell.label: True for row in rows}
        for row in rows:
            holds[row.cell.label] &= row.holds
        if finding["verdict"] == claim.HOLDS:
            assert all(holds.values()), (name, number)
        elif finding["verdict"] == claim.FAILS:
            assert not holds or not all(holds.values()), (name, number)
        else:
            assert holds, (name, number)
            assert holds == cells.split_verdict(finding["verdict"], list(holds)), (name, number)
        charted += bool(charts)
    assert charted > 90


def test_the_table_of_panels_names_findings_and_panels_that_exist(cells, regions, findings):
    texts = {(name, number): finding["measured"] for name, number, finding in findings}
    chapters = load("pages.chapters")
    for (name, number), panels in regions.PANELS.items():
        if name in chapters.CHAPTERS["applications"] and (name, number) not in texts:
            continue  # no result yet
        assert set(panels) <= set(range(len(cells.parse_panels(texts[name, number]))))


def test_bounds_decide_the_verdict(claim):
    """The whole interval must be inside; an end at a bound is not."""
    values = {"low": claim.Interval(1.0, 0.5, 1.5), "high": claim.Interval(3.0, 2.0, 4.0)}

    def verdict(*bounds):
        return claim.by_bounds("It is", "them", "Gain", values, "it is", "+.1f", bounds).verdict

    assert verdict(0, None) == verdict(None, 4.1) == verdict(0.4, 4.1) == claim.HOLDS
    assert verdict(0.5, None) == verdict(1.9, None) == "holds only when it is high (not low)"
    assert verdict(None, 4) == verdict(0, 2) == "holds only when it is low (not high)"
    assert verdict(2, 4) == claim.FAILS
