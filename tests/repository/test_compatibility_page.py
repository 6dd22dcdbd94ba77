"""The table of tested versions is written from its JSON, and the oldest versions are tested."""

import json
import re
import tomllib

import compatibility_page

ROOT = compatibility_page.DOCS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_page_shows_the_rows():
    rows = json.loads(compatibility_page.ROWS.read_text())
    page = compatibility_page.PAGE.read_text()
    assert page == compatibility_page.replace_table(page, rows), "run tests/compatibility_page.py"


def test_the_oldest_python_and_jax_have_passed():
    (oldest,) = re.findall(r"jax>=([\d.]+)", " ".join(PROJECT["dependencies"]))
    python = PROJECT["requires-python"].removeprefix(">=")
    pins = re.findall(r"jax(?:lib)?==([\d.]+)", (ROOT / "Makefile").read_text())
    assert set(pins) == {f"{oldest}.0"}
    rows = json.loads(compatibility_page.ROWS.read_text())
    assert (python, f"{oldest}.0") in {(row["python"], row["jax"]) for row in rows}


def test_a_row_replaces_the_one_of_the_same_versions_and_rows_are_in_order():
    def row(jax, ran="`make test`", result="passed"):
        versions = {"python": "3.11", "jaxlib": jax, "numpy": "2.0.0", "flax": None}
        return versions | {"jax": jax, "device": "CPU", "ran": ran, "result": result}

    rows = compatibility_page.with_row([], row("0.10.2", result="old"))
    rows = compatibility_page.with_row(rows, row("0.9.10"))
    rows = compatibility_page.with_row(rows, row("0.10.2"))
    assert rows == [row("0.9.10"), row("0.10.2")]
    assert len(compatibility_page.with_row(rows, row("0.10.2", ran="`make wheel`"))) == 3
    assert "| 3.11 | 0.10.2 |  | CPU |" in compatibility_page.render_table(rows)


def test_the_versions_are_those_installed():
    import jax

    assert compatibility_page.installed_versions()["jax"] == jax.__version__
