"""What importing costs and brings; `make lint` checks that imports point down (pyproject.toml)."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import dropout_jax

ROOT = pathlib.Path(__file__).parents[2]


def run(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_needs_jax_and_numpy_only():
    code = """
import sys
import jax, jax.numpy
before = set(sys.modules)
import dropout_jax
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    assert set(run(code).split()) <= {"dropout_jax", "hashlib", "_hashlib", "_blake2"}


def test_importing_runs_nothing_on_a_device():
    code = "import jax, dropout_jax; print(len(jax.live_arrays()))"
    assert run(code).strip() == "0"


FOLDERS = ("dropout_jax", "minigpt", "tests", "examples", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_first_line_says_the_purpose_and_no_private_jax(path):
    text = path.read_text()
    assert (ast.get_docstring(ast.parse(text)) or "").strip(), (
        "a file's first line says its purpose"
    )
    assert "jax._src" not in text or path.name == "test_package.py"


def test_minigpt_uses_the_public_names_only():
    for path in (ROOT / "minigpt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dropout_jax"):
                assert node.module == "dropout_jax"
                assert {alias.name for alias in node.names} <= {*dropout_jax.__all__, "audit"}


def test_the_catalogue_points_at_the_file_of_each_function():
    text = (ROOT / "docs" / "catalogue.md").read_text()
    links = re.findall(r"\[`(\w+)`\]\(\.\./(dropout_jax/[\w/]+\.py)\)", text)
    assert len(links) == len(set(links)) > 20
    for name, path in links:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), name


def test_the_readme_is_short_and_names_every_function_of_the_catalogue():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 7_000
    catalogue = (ROOT / "docs" / "catalogue.md").read_text()
    for name in re.findall(r"(?m)^\| \[`(\w+)`\]", catalogue):
        assert f"`{name}`" in text, name


PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_resolves(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target = link.partition("#")[0]
        if target and not re.match(r"https?:", target):
            assert ((ROOT / page).parent / target).exists(), link
    assert not re.search(r"\.py#L\d+", text), "no link points at a line number"


def test_everything_public_has_a_docstring_with_an_example():
    names = [name for name in vars(dropout_jax) if name in dropout_jax.__all__]
    assert names
    for name in names:
        doc = getattr(dropout_jax, name).__doc__
        for part in ("Formula", "Args:", "Returns:", "Raises:", "Example:", ">>>"):
            assert part in doc, f"{name}: {part}"


def test_no_function_is_longer_than_a_screen():
    """Of 40 lines, its docstring not counted."""
    for folder in ("dropout_jax", "minigpt"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    body = node.body[1:] if ast.get_docstring(node) else node.body
                    first, last = (body[0].lineno, body[-1].end_lineno or 0) if body else (1, 0)
                    assert last - first < 40, f"{path}: {node.name}"
