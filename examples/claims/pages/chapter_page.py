"""The page of a chapter: a table of its claims, then each experiment with charts of its cells."""

from pages import forest
from pages.cells import parse_panels
from pages.chapters import APPLICATIONS, CHAPTERS, TITLES, chapter_of, script_path
from pages.markdown import (
    KINDS,
    count_verdicts,
    describe_charts,
    describe_device,
    describe_verdict,
    format_table,
    heading_anchor,
    image,
)
from pages.regions import charts_of

LEGEND = """\
Each chart has a row for each setting: a dot for the mean over independent seeds, and a line for
its 95 % interval. The claim holds in a setting if the whole interval is in the shaded part. Then
the dot is blue and full; otherwise it is an orange ring. The chart of a claim with several
conditions has no shaded part.
"""
CLAIMS_PAGE = "../claims.md"


def render_chapter(chapter: str, results: dict[str, dict]) -> str:
    """The page of a chapter, from the results of its scripts."""
    records = {name: results[name] for name in CHAPTERS[chapter] if name in results}
    return join(
        f"# {TITLES[chapter]}",
        f"{count_sentence(records)} [All chapters]({CLAIMS_PAGE})",
        _claims_table(records),
        LEGEND,
        *(_render_experiment(name, record) for name, record in records.items()),
    )


def join(*parts: str) -> str:
    """Paragraphs of a page."""
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def count_sentence(records: dict[str, dict]) -> str:
    """How many claims there are, and how many of each verdict."""
    counts = count_verdicts(records.values())
    holds, conditions, fails = (counts[kind] for kind in KINDS)
    return (
        f"{sum(counts.values())} claims: {holds} hold (●), {conditions} hold in some of the "
        f"settings that were measured (◐), {fails} do not hold (○)."
    )


def experiment_link(name: str, record: dict) -> str:
    """The part of a chapter's page for an experiment, from another page of the chapters."""
    return f"{chapter_of(name)}.md#{heading_anchor(record['title'])}"


def cells_path(name: str, number: int) -> str:
    """A chart's path beside the chapters' pages."""
    return f"cells/{name}_{number}.svg"


def draw_cells(results: dict[str, dict]) -> dict[str, str]:
    """Path and SVG of the charts of every finding that has cells."""
    findings = [
        (name, number, finding)
        for name, record in results.items()
        for number, finding in enumerate(record["findings"])
    ]
    charts = {(name, i): (charts_of(name, i, each), each["claim"]) for name, i, each in findings}
    return {
        cells_path(name, i): forest.draw(drawn, claim)
        for (name, i), (drawn, claim) in charts.items()
        if drawn
    }


def _claims_table(records: dict[str, dict]) -> str:
    """Claim and verdict."""
    rows = [
        [
            f"[{finding['claim']}](#{heading_anchor(record['title'])})",
            describe_verdict(name, i, finding),
        ]
        for name, record in records.items()
        for i, finding in enumerate(record["findings"])
    ]
    return format_table(rows, ["claim", "verdict"])


def _render_experiment(name: str, record: dict) -> str:
    """An experiment's title, command, picture and findings."""
    title, path, table = record["title"], script_path(name), record["numbers"].get("table")
    scale = "" if record["scale"] == "default" else f" --{record['scale']}"
    links = [f"[script](../../examples/{path})", f"[numbers]({name}.json)"]
    if name in CHAPTERS[APPLICATIONS]:
        links.insert(0, f"[what it does](../{APPLICATIONS}/{name}.md)")
    device = describe_device(record)
    return join(
        f"## {title}",
        f"`python examples/{path}{scale}` ({', '.join(links)})."
        f"{f' Measured on: {device}.' if device else ''}",
        image(title, f"{name}.png"),
        *(_render_finding(name, i, finding) for i, finding in enumerate(record["findings"])),
        format_table(table, "keys") if table else "",
    )


def _render_finding(name: str, number: int, finding: dict) -> str:
    """A claim, its verdict and source, and its cells as charts; as text what no chart has."""
    measured = finding["measured"].rstrip(".")
    charts = charts_of(name, number, finding)
    drawn = sum(len(chart.rows) for chart in charts)
    is_drawn = drawn > 0 and drawn == sum(len(panel.cells) for panel in parse_panels(measured))
    text = f". {measured[:1].upper()}{measured[1:]}."
    return join(
        f"**{finding['claim']}** (made in: {finding['source']})",
        f"{describe_verdict(name, number, finding)}{'' if is_drawn else text}",
        image(describe_charts(charts), cells_path(name, number)) if charts else "",
    )
