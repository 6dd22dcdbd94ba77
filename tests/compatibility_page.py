"""Record that something passed with the versions installed here: python FILE COMMAND.

Without COMMAND, docs/compatibility.md is only written again from docs/compatibility.json. CI runs
it after what has passed, in the environment in which it passed; so it needs no package.
"""

import importlib.metadata
import json
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
ROWS, PAGE = DOCS / "compatibility.json", DOCS / "compatibility.md"
PACKAGES = ("jax", "jaxlib", "numpy", "flax")
COLUMNS = ("python", "jax", "flax", "device", "ran", "result")
BEGIN = "<!-- python tests/compatibility_page.py writes what follows -->"


def installed_versions() -> dict[str, str | None]:
    """The versions here; None: the package is not installed."""
    versions: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def with_row(rows: list[dict], row: dict) -> list[dict]:
    """The rows with one more; it replaces the one of the same versions, device and command."""
    kept = [each for each in rows if _identity(each) != _identity(row)]
    return sorted([*kept, row], key=_order)


def _identity(row: dict) -> tuple:
    return tuple(row[name] for name in ("python", "jax", "flax", "device", "ran"))


def _order(row: dict) -> list:
    """Oldest versions first."""
    versions = (row["python"], row["jax"], row["flax"] or "0")
    return [*([int(n) for n in re.findall(r"\d+", each)] for each in versions), row["ran"]]


def render_table(rows: list[dict]) -> str:
    """The rows as a table; an empty cell is a package that was not installed."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(row[name] or '' for name in COLUMNS)} |" for row in rows]
    return "\n".join(lines)


def replace_table(page: str, rows: list[dict]) -> str:
    """The page with the lines after the comment replaced."""
    return f"{page.partition(BEGIN)[0]}{BEGIN}\n\n{render_table(rows)}\n"


def main(commands: list[str]) -> None:
    """Add a row for each command, and write the page."""
    rows = json.loads(ROWS.read_text())
    for command in commands:
        row = installed_versions() | {"device": "CPU", "ran": f"`{command}`", "result": "passed"}
        rows = with_row(rows, row)
    ROWS.write_text(f"{json.dumps(rows, indent=1)}\n")
    PAGE.write_text(replace_table(PAGE.read_text(), rows))


if __name__ == "__main__":
    main(sys.argv[1:])
