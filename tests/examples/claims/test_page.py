"""The claims' ground: intervals, verdicts, and a page that holds every experiment."""

import json

import numpy as np
import pytest
from experiments import ROOT, SCRIPTS, load


def test_an_interval_covers_the_mean_at_95_percent():
    """Of 4,000 intervals of five normal draws 95 % hold the mean: sd 14, bounds at 4.9 sd."""
    interval = load("common.claim").interval
    draws = np.random.default_rng(0).normal(3, 2, (4000, 5))
    covered = sum(cell.low < 3 < cell.high for cell in map(interval, draws))
    assert abs(covered - 3800) < 68


def test_an_interval_is_written_once_with_its_unit():
    cell = load("common.claim").Interval(0.912, 0.905, 0.919)
    assert f"{cell:.2f}" == "0.91 (0.91 to 0.92)"
    assert f"{cell:.1%}" == "91.2% (90.5 to 91.9%)"
    assert cell.positive
    assert not cell.negative


def test_a_verdict_is_one_of_three():
    claim = load("common.claim")
    claim.Finding("a", "b", "c", claim.ONLY_WHEN + "data is scarce")
    with pytest.raises(ValueError, match="verdict='perhaps'"):
        claim.Finding("a", "b", "c", "perhaps")


def test_a_verdict_by_cells_names_those_where_it_holds():
    by = load("common.claim").verdict_by
    assert by("the rate is", {0.1: True, 0.5: True}) == "holds"
    assert by("the rate is", {0.1: False, 0.5: False}) == "does not hold"
    above, across = load("common.claim").Interval(2, 1, 3), load("common.claim").Interval(1, -1, 3)
    assert by("measured by", {"a": above, "b": across}) == "holds only when measured by a (not b)"
    some = by("the rate is", {0.1: True, 0.2: False, 0.5: True, 0.7: True})
    assert some == "holds only when the rate is 0.1, 0.5 or 0.7 (not 0.2)"


def test_a_fall_is_what_a_claim_of_a_fall_wants():
    claim = load("common.claim")
    fall, rise = claim.Interval(-2, -3, -1), claim.Interval(2, 1, 3)
    assert -fall == rise
    assert rise.percent() == claim.Interval(200, 100, 300)
    up = claim.by_cell("it rises", "a book", "points", {0.1: fall, 0.5: rise}, "the rate is", ".0f")
    assert up.measured == "points: 0.1: -2 (-3 to -1), 0.5: 2 (1 to 3)"
    assert up.verdict == "holds only when the rate is 0.5 (not 0.1)"
    down = claim.by_cell("it falls", "a book", "points", {0.1: fall}, "the rate is", sign=-1)
    assert down.verdict == claim.HOLDS


def test_intervals_are_of_columns_and_over_seeds():
    claim = load("common.claim")
    values = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    cells = claim.intervals(values, ["one", "ten"])
    assert cells == {"one": claim.interval([1, 2, 3]), "ten": claim.interval([10, 20, 30])}


def test_the_crossing_is_where_the_gain_ends_for_good():
    zero_crossing = load("common.claim").zero_crossing
    assert zero_crossing((100, 1000, 10_000), [2, 1, -1]) == pytest.approx(10**3.5)
    assert zero_crossing((100, 1000, 10_000), [-1, 3, -1]) == pytest.approx(1000 * 10**0.75)
    assert zero_crossing((100, 1000, 10_000), [-1, 1, 2]) is None
    assert zero_crossing((100, 1000, 10_000), [-1, -1, -2]) is None


def test_stacked_splits_are_those_of_their_seeds():
    data = load("common.data")
    both = data.stack_splits(data.load_digits, [3, 4])
    assert (both.y_test[1] == data.load_digits(seed=4).y_test).all()
    assert both.x_train.shape == (2, 900, 64)


def test_a_script_has_about_a_hundred_lines():
    lines = {path.stem: len(path.read_text().splitlines()) for path in SCRIPTS}
    assert max(lines.values()) <= 130, max(lines, key=lines.__getitem__)


def test_every_script_is_on_the_page():
    listed = [(folder, name) for folder, names in load("page").CHAPTERS.items() for name in names]
    assert sorted(listed) == [(path.parent.name, path.stem) for path in SCRIPTS]


def test_the_page_in_the_repository_is_made_of_the_results_beside_it():
    """Verdicts and figures on the page are those of the JSON, of the default form or the long."""
    page, docs = load("page"), ROOT / "docs"
    names = [name for chapter in page.CHAPTERS.values() for name in chapter]
    results = {name: json.loads((docs / "claims" / f"{name}.json").read_text()) for name in names}
    assert (docs / "claims.md").read_text() == page.render_page(results, "claims")
    assert all(result["scale"] != "smallest" for result in results.values())


def test_a_recommended_rate_gains_with_its_whole_interval_and_is_0_otherwise():
    interval, best = load("common.claim").Interval, load("common.rates").best_rate
    unsure, low, high = interval(3, -1, 7), interval(1, 0.5, 1.5), interval(2, 0.1, 3.9)
    assert best({0.1: low, 0.2: high, 0.5: unsure}) == (0.2, high)
    assert best({0.1: unsure, 0.5: unsure}) == (0.0, unsure)


def test_the_readme_has_the_pages_rates():
    page, docs = load("page"), ROOT / "docs"
    names = [name for chapter in page.CHAPTERS.values() for name in chapter]
    results = {name: json.loads((docs / "claims" / f"{name}.json").read_text()) for name in names}
    rows = load("common.rates").recommended_rates(results)
    readme = (docs.parent / "README.md").read_text()
    for row in rows:
        assert f"| {row['setting']} | {row['rate']} | {row['why']} |" in readme
