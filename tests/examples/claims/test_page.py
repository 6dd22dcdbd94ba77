"""The page of the claims: every experiment is on it, and it agrees with the results."""

import json

from experiments import ROOT, SCRIPTS, load


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


def test_the_page_of_rates_has_the_rates_of_the_results():
    page, docs = load("page"), ROOT / "docs"
    names = [name for chapter in page.CHAPTERS.values() for name in chapter]
    results = {name: json.loads((docs / "claims" / f"{name}.json").read_text()) for name in names}
    rows = load("common.rates").recommended_rates(results)
    text = (docs / "rates.md").read_text()
    for row in rows:
        assert f"| {row['setting']} | {row['rate']} | {row['why']} |" in text
