"""The first page of the claims: how they are decided, those that matter most, the chapters."""

from pages import forest
from pages.chapter_page import (
    LEGEND,
    cells_path,
    count_sentence,
    experiment_link,
    join,
)
from pages.chapters import CHAPTERS, TITLES
from pages.highlights import HIGHLIGHTS, Highlight, highlight_charts, write_sentences
from pages.markdown import (
    KINDS,
    count_verdicts,
    describe_charts,
    describe_verdict,
    format_table,
    image,
)

INTRODUCTION = """\
# Claims about dropout, tested by experiments

Papers, courses and documentation make claims about dropout. Here an experiment tests each claim: a
script trains with several independent seeds and computes means with 95 % intervals of Student's t.
Code decides the verdict from the intervals. A claim *holds* if the whole interval of its difference
has the claimed sign. It *does not hold* otherwise. A claim that two methods are
equally good holds if the whole interval is within a margin that the claim names. All verdicts are
about the data used here, which are small. `make claims` runs every experiment and writes these
pages; it downloads nothing.
"""

RATES = """\
## Rates to start a search from

[Which dropout at which rate](rates.md) has a table of rates for each setting, from these results.
"""


def render_front_page(results: dict[str, dict], folder: str) -> str:
    """The page; `folder` is that of the chapters' pages and the pictures, beside the page."""
    return join(
        INTRODUCTION,
        LEGEND,
        f"## The {len(HIGHLIGHTS)} claims that matter most",
        *(_render_highlight(highlight, results, folder) for highlight in HIGHLIGHTS),
        "## All claims by chapter",
        count_sentence(results),
        _chapters_table(results, folder),
        RATES,
        _contents(results, folder),
    )


def draw_highlights(results: dict[str, dict]) -> dict[str, str]:
    """Path and SVG of the charts that no finding has by itself."""
    return {
        f"cells/{highlight.script}.svg": forest.draw(
            highlight_charts(highlight, results[highlight.script]), _claim(highlight, results)
        )
        for highlight in HIGHLIGHTS
        if highlight.charts
    }


def _claim(highlight: Highlight, results: dict[str, dict]) -> str:
    return results[highlight.script]["findings"][highlight.number]["claim"]


def _render_highlight(highlight: Highlight, results: dict[str, dict], folder: str) -> str:
    """A claim, its picture, its verdict and two sentences."""
    name, number = highlight.script, highlight.number
    record = results[name]
    finding = record["findings"][number]
    path = f"cells/{name}.svg" if highlight.charts else cells_path(name, number)
    sentences = write_sentences(highlight, record)
    return join(
        f"### {finding['claim']}",
        image(describe_charts(highlight_charts(highlight, record)), f"{folder}/{path}"),
        f"**{describe_verdict(name, number, finding)}.** {sentences} "
        f"([Experiment]({folder}/{experiment_link(name, record)}))",
    )


def _chapters_table(results: dict[str, dict], folder: str) -> str:
    """Each chapter and its number of claims by verdict."""
    rows = []
    for chapter, names in CHAPTERS.items():
        counts = count_verdicts(results[name] for name in names if name in results)
        numbers = [counts[kind] for kind in KINDS]
        rows.append([f"[{TITLES[chapter]}]({folder}/{chapter}.md)", sum(numbers), *numbers])
    totals = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
    return format_table([*rows, ["all", *totals]], ["chapter", "claims", "●", "◐", "○"])


def _contents(results: dict[str, dict], folder: str) -> str:
    """The chapters, for the site's table of contents."""
    paths = [f"{folder}/{chapter}" for chapter in CHAPTERS]
    return "\n".join(["```{toctree}", ":hidden:", "", *paths, "```"])
