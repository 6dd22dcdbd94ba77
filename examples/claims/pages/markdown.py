"""Pieces of Markdown: tables, anchors, pictures, and the words of a verdict."""

import re
from collections import Counter
from collections.abc import Iterable

from tabulate import tabulate

from common.claim import FAILS, HOLDS
from pages.regions import Chart, charts_of

SYMBOLS = {HOLDS: "●", FAILS: "○"}
CONDITIONS = "holds in some settings"
KINDS = (HOLDS, CONDITIONS, FAILS)


def format_table(rows, headers) -> str:
    """A table without the spaces that line up its source."""
    padded = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return re.sub("-{3,}", "---", re.sub(" {2,}", " ", padded))


def heading_anchor(title: str) -> str:
    """GitHub's name for a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def image(text: str, path: str) -> str:
    """A picture with its text for readers who do not see it."""
    return f"![{text.replace('[', '(').replace(']', ')')}]({path})"


def describe_charts(charts: list[Chart]) -> str:
    """What charts show, in words."""
    rows = (
        ", ".join(f"{row.cell.label}: {row.cell.text}" for row in chart.rows) for chart in charts
    )
    parts = zip(charts, rows, strict=True)
    return "; ".join(f"{chart.heading}: {cells}" for chart, cells in parts)


def replace_between(page: str, name: str, content: str) -> str:
    """A page with new content between `<!-- name: begin -->` and `<!-- name: end -->`."""
    begin, end = (f"<!-- {name}: {edge} -->" for edge in ("begin", "end"))
    before, _, rest = page.partition(begin)
    _, marker, after = rest.partition(end)
    if not marker:
        raise ValueError(f"a page without {begin} and {end}: write both markers into it.")
    return f"{before}{begin}\n{content.strip()}\n{end}{after}"


def describe_device(record: dict) -> str:
    """The name of the device of a result, if the result has it."""
    device = record.get("device", "")
    return "CPU" if device == "cpu" else device


def count_verdicts(records: Iterable[dict]) -> Counter:
    """The number of findings of each kind of verdict."""
    verdicts = [finding["verdict"] for record in records for finding in record["findings"]]
    return Counter(verdict if verdict in SYMBOLS else CONDITIONS for verdict in verdicts)


def describe_verdict(name: str, number: int, finding: dict) -> str:
    """A verdict with its symbol; of one with conditions, the number of settings."""
    verdict = finding["verdict"]
    if verdict in SYMBOLS:
        return f"{SYMBOLS[verdict]} {verdict}"
    holding, settings = count_settings(charts_of(name, number, finding))
    return f"◐ holds in {holding} of {settings} settings"


def count_settings(charts: list[Chart]) -> tuple[int, int]:
    """In how many settings the claim holds, and how many there are."""
    rows = [row for chart in charts for row in chart.rows]
    holds = {row.cell.label: True for row in rows}
    for row in rows:
        holds[row.cell.label] &= row.holds
    return sum(holds.values()), len(holds)
