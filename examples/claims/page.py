"""Run every experiment of the chapters, and write the pages of their results.

    python examples/claims/page.py [--full | --smallest] [--only NAME ...] [--out docs/claims]

`--only` runs the named scripts; without names it runs none. The pages have the results of all:
docs/claims.md, docs/claims/CHAPTER.md with their charts, and parts of docs/rates.md and
docs/applications/NAME.md.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from common import rates
from pages import application_page, chapter_page, front_page
from pages.chapters import APPLICATIONS, CHAPTERS, load_results, script_path
from pages.markdown import format_table, replace_between

EXAMPLES = Path(__file__).parents[1]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true")
    size.add_argument("--smallest", action="store_true")
    parser.add_argument("--only", nargs="*", help="run only these scripts; without names, none")
    parser.add_argument("--out", type=Path, default=Path("docs/claims"))
    options = parser.parse_args(arguments)
    names = [name for chapter in CHAPTERS.values() for name in chapter]
    console = Console(highlight=False)
    for i, name in enumerate(names if options.only is None else options.only):
        console.rule(f"{name} ({i + 1} of {len(names)})")
        words = [sys.executable, str(EXAMPLES / script_path(name)), "--out", str(options.out)]
        words += [f"--{word}" for word in ("full", "smallest") if getattr(options, word)]
        subprocess.run(words, check=True)
    for path, text in render_pages(options.out).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    console.print(f"wrote {options.out.with_suffix('.md')} and the pages of {options.out}")


def render_pages(folder: Path) -> dict[Path, str]:
    """The path and text of every page and chart, from the results in a folder."""
    results = load_results(folder)
    charts = chapter_page.draw_cells(results)
    charts |= front_page.draw_highlights(results) | application_page.draw_levels(results)
    pages = {folder / path: svg for path, svg in charts.items()}
    pages[folder.with_suffix(".md")] = front_page.render_front_page(results, folder.name)
    for chapter in CHAPTERS:
        pages[folder / f"{chapter}.md"] = chapter_page.render_chapter(chapter, results)
    return pages | fill_pages(folder, results)


def fill_pages(folder: Path, results: dict[str, dict]) -> dict[Path, str]:
    """The pages that are written by hand except for a part: rates and applications."""
    parts = {"rates.md": format_table(rates.recommended_rates(results), "keys")}
    for name in CHAPTERS[APPLICATIONS]:
        if name in results:
            text = application_page.render_results(name, results[name], folder.name)
            parts[f"{APPLICATIONS}/{name}.md"] = text
    paths = {folder.parent / path: text for path, text in parts.items()}
    return {
        path: replace_between(path.read_text(), "results", text)
        for path, text in paths.items()
        if path.exists()
    }


if __name__ == "__main__":
    main()
