"""The pages of the claims: every claim is on one of them, and they agree with the results."""

import json
import re
import shutil
from collections import Counter

import pytest
from experiments import CLAIMS, ROOT, SCRIPTS, load

DOCS = ROOT / "docs"
APPLICATIONS = load("pages.chapters").CHAPTERS["applications"]


@pytest.fixture(scope="module")
def chapters():
    return load("pages.chapters")


@pytest.fixture(scope="module")
def pages():
    """The text of every page and chart by its path, made of the results in the repository."""
    return load("page").render_pages(DOCS / "claims")


def test_a_script_has_about_a_hundred_lines():
    lines = {path.stem: len(path.read_text().splitlines()) for path in SCRIPTS}
    assert max(lines.values()) <= 130, max(lines, key=lines.__getitem__)


def test_every_script_is_on_the_pages(chapters):
    folders = [folder for folder in chapters.CHAPTERS if (CLAIMS / folder).is_dir()]
    assert (
        set(chapters.CHAPTERS) - set(folders)
        == {"applications"}
        == set(chapters.TITLES) - set(folders)
    )
    listed = [(folder, name) for folder in folders for name in chapters.CHAPTERS[folder]]
    assert sorted(listed) == [(path.parent.name, path.stem) for path in SCRIPTS]
    for name in APPLICATIONS:
        assert (ROOT / "examples" / chapters.script_path(name)).exists()


def test_the_pages_in_the_repository_are_made_of_the_results_beside_them(pages):
    """Verdicts, figures and charts are those of the JSON, of the default form or the long."""
    for path, text in pages.items():
        assert path.read_text() == text, f"{path}: run examples/claims/page.py --only"
    written = [*(DOCS / "claims").glob("*.md"), *(DOCS / "claims" / "cells").iterdir()]
    assert set(written) <= set(pages)
    for path in (DOCS / "claims").glob("*.json"):
        assert json.loads(path.read_text())["scale"] != "smallest"


def test_every_claim_is_on_exactly_one_chapter_page(chapters):
    claims, on_pages = Counter(), Counter()
    for path in (DOCS / "claims").glob("*.json"):
        findings = json.loads(path.read_text())["findings"]
        claims.update((finding["claim"], finding["source"]) for finding in findings)
    for chapter in chapters.CHAPTERS:
        text = (DOCS / "claims" / f"{chapter}.md").read_text()
        on_pages.update(re.findall(r"^\*\*(.+)\*\* \(made in: (.+)\)$", text, re.MULTILINE))
    assert on_pages == claims


def test_the_first_page_counts_the_claims(chapters):
    """Against a count of the verdicts in the text of the JSON files."""
    text = "".join(path.read_text() for path in (DOCS / "claims").glob("*.json"))
    counts = [text.count(f'"verdict": "{begin}') for begin in ('holds"', "holds only", "does not")]
    holds, conditions, fails = counts
    page = (DOCS / "claims.md").read_text()
    sentence = f"{sum(counts)} claims: {holds} hold (●), {conditions} hold in some of the settings"
    assert f"{sentence} that were measured (◐), {fails} do not hold (○)." in page
    assert f"| all | {sum(counts)} | {holds} | {conditions} | {fails} |" in page
    for chapter in chapters.CHAPTERS:
        assert f"](claims/{chapter}.md)" in page
        assert f"\nclaims/{chapter}\n" in page  # in the table of contents


def test_a_claim_that_matters_has_a_picture_and_two_sentences(chapters):
    highlights = load("pages.highlights")
    results = chapters.load_results(DOCS / "claims")
    assert len(highlights.HIGHLIGHTS) == 12
    page = (DOCS / "claims.md").read_text()
    sections = re.split("^### ", page.partition("## All claims")[0], flags=re.MULTILINE)[1:]
    assert len(sections) == 12
    for highlight, section in zip(highlights.HIGHLIGHTS, sections, strict=True):
        sentences = highlights.write_sentences(highlight, results[highlight.script])
        assert len(re.split(r"(?<=\.) (?=[A-Z])", sentences)) == 2
        assert re.search(r"\d", sentences)
        assert sentences in section
        assert section.count("![") == 1


def test_the_numbers_of_the_sentences_are_those_of_the_results(chapters):
    """Another result gives another sentence."""
    highlights = load("pages.highlights")
    results = chapters.load_results(DOCS / "claims")
    record = results["forgotten_evaluation"]
    before = highlights.write_sentences(highlights.HIGHLIGHTS[0], record)
    changed = json.loads(json.dumps(record).replace("0.8: 35.9 (", "0.8: 33.3 ("))
    after = highlights.write_sentences(highlights.HIGHLIGHTS[0], changed)
    assert after == before.replace("35.9", "33.3") != before


def test_all_pictures_are_small(pages):
    sizes = [len(text.encode()) for path, text in pages.items() if path.suffix == ".svg"]
    assert len(sizes) > 90
    assert sum(sizes) < 1_000_000


def test_the_page_of_rates_has_the_rates_of_the_results(chapters):
    rows = load("common.rates").recommended_rates(chapters.load_results(DOCS / "claims"))
    text = (DOCS / "rates.md").read_text()
    for row in rows:
        assert f"| {row['setting']} | {row['rate']} | {row['why']} |" in text


@pytest.mark.parametrize("name", APPLICATIONS)
def test_an_application_is_one_file_with_a_page(chapters, name):
    script = ROOT / "examples" / chapters.script_path(name)
    assert len(script.read_text().splitlines()) <= 200
    text = (DOCS / "applications" / f"{name}.md").read_text()
    assert f"python examples/{script.name}" in text
    assert f"(../../examples/{script.name})" in text
    path = DOCS / "claims" / f"{name}.json"
    if path.exists():
        for finding in json.loads(path.read_text())["findings"]:
            assert f"| {finding['claim']} | " in text
        assert f"(../claims/cells/{name}_levels.svg)" in text


def test_an_application_without_a_result_is_left_out(chapters, tmp_path):
    folder = tmp_path / "claims"
    folder.mkdir()
    for path in (DOCS / "claims").glob("*.json"):
        if path.stem not in APPLICATIONS[1:]:
            shutil.copy(path, folder)
    pages = load("page").render_pages(folder)
    count = len(chapters.load_results(folder)[APPLICATIONS[0]]["findings"])
    assert f"| [Applications](claims/applications.md) | {count} |" in pages[tmp_path / "claims.md"]
    text = pages[folder / "applications.md"]
    assert re.findall(r"numbers\]\((.+?)\.json", text) == APPLICATIONS[:1]


def test_a_page_needs_markers_for_its_results():
    replace = load("pages.markdown").replace_between
    page = "a\n<!-- results: begin -->\nold\n<!-- results: end -->\nb\n"
    assert replace(page, "results", "new") == page.replace("old", "new")
    with pytest.raises(ValueError, match="write both markers"):
        replace("a\n<!-- results: begin -->\n", "results", "new")
