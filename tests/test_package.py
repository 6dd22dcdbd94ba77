"""What importing costs and brings, and that imports point down."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import dropout_jax

ROOT = pathlib.Path(__file__).parent.parent

# Each module may import these modules of its own package, and no others.
ALLOWED = {
    "dropout_jax": {
        "_checks": set(),
        "reference": set(),
        "_threefry": set(),
        "keys": {"_checks"},
        "masks": {"_checks", "_threefry"},
        "noise": {"masks"},
        "_apply": {"_checks", "masks"},
        "schedules": {"_checks"},
        "elementwise": {"_apply", "_checks", "masks", "noise"},
        "structured": {"_apply", "_checks", "masks"},
        "paths": {"_apply", "_checks", "masks"},
        "learned": {"_apply", "_checks", "noise"},
        "_attention_inputs": set(),
        "_naive": {"_apply", "_attention_inputs"},
        "_blockwise": {"_apply", "_attention_inputs", "masks"},
        "attention": {
            *("_apply", "_attention_inputs", "_blockwise", "_checks", "_naive", "kernels", "masks"),
        },
        "passes": {"_apply", "_checks", "elementwise", "keys"},
        "uncertainty": {"_apply", "_checks", "keys"},
        "nn": {"_checks", "elementwise", "learned", "paths", "structured"},
        "kernels/__init__": set(),
        "kernels/attention": {"_apply", "_attention_inputs", "masks"},
        "parity/__init__": set(),
        "parity/bernoulli": {"_checks", "_threefry"},
        "parity/divergence": set(),
        "parity/hooks": set(),
        "parity/keys": set(),
        "parity/torch": set(),
        "__init__": {
            *("_apply", "attention", "elementwise", "keys", "learned", "masks", "passes", "paths"),
            *("schedules", "structured", "uncertainty"),
        },
    },
    "minigpt": {
        "__init__": set(),
        "__main__": {"cli"},
        "config": set(),
        "corpus": set(),
        "tokenizer": set(),
        "tokens": {"corpus", "tokenizer"},
        "files": set(),
        "plots": {"files"},
        "manifest": set(),
        "checkpoint": {"files", "manifest"},
        "sample": set(),
        "batches": set(),
        "evaluate": {"batches"},
        "sites": {"config"},
        "model": {"config", "sharding", "sites"},
        "optim": {"config"},
        "hosts": set(),
        "utilization": {"config"},
        "observe": set(),
        "sharding": {"batches", "config"},
        "train_step": {"batches", "config", "model", "optim", "sharding"},
        "metrics": {"files"},
        "stopping": set(),
        "rundir": {"config", "files", "tokenizer"},
        "finetune": {"checkpoint", "config", "rundir", "sharding", "tokenizer", "train_step"},
        "overfitting": {"config", "resume"},
        "resume": {"checkpoint", "config", "metrics", "rundir"},
        "loop": {
            *("batches", "checkpoint", "config", "evaluate", "finetune", "hosts", "job", "metrics"),
            *("observe", "overfitting", "plots", "resume", "rundir", "sharding", "shown"),
            *("stopping", "tokens", "train_step", "utilization"),
        },
        "job": {"config", "hosts", "rundir", "stopping", "tokens", "train_step"},
        "shown": {"job", "sample"},
        "replay": {
            *("batches", "checkpoint", "config", "finetune", "metrics", "model", "rundir"),
            *("sharding", "sites", "tokens", "train_step"),
        },
        "uncertainty": {"config", "model", "rundir", "tokenizer"},
        "coloured": set(),
        "labelled": {"corpus", "tokenizer"},
        "speeches": {"corpus", "labelled"},
        "scores": set(),
        "baselines": {"labelled", "scores"},
        "report": {"files", "scores"},
        "classifier": {"config", "model"},
        "classify": {
            "classifier",
            *("checkpoint", "config", "labelled", "model", "optim", "scores", "tokenizer"),
        },
        "options": {"config", "finetune", "rundir"},
        "cli": {
            *("baselines", "checkpoint", "classify", "coloured", "corpus", "evaluate", "files"),
            *("hosts", "labelled", "loop", "options", "replay", "report", "resume", "rundir"),
            *("sample", "scores", "speeches", "tokens", "train_step", "uncertainty"),
        },
    },
}


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


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_down(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package):
                inner = node.module.split(".")[1:]
                found |= {inner[0]} if inner else {alias.name for alias in node.names}
        name = "/".join(path.relative_to(ROOT / package).with_suffix("").parts)
        assert found <= ALLOWED[package][name], name


FILES = sorted({*ROOT.glob("*/*.py"), *(ROOT / "dropout_jax").rglob("*.py")})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_first_line_says_the_purpose_and_no_private_jax(path):
    if ".venv" in path.parts:
        return
    text = path.read_text()
    assert (ast.get_docstring(ast.parse(text)) or "").strip(), (
        "a file's first line says its purpose"
    )
    assert "jax._src" not in text or path.name == "test_package.py"


def test_minigpt_uses_the_public_names_only():
    for path in (ROOT / "minigpt").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dropout_jax"):
                assert node.module == "dropout_jax"
                assert {alias.name for alias in node.names} <= set(dropout_jax.__all__)


def test_the_readmes_catalogue_points_at_each_function():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\[`(\w+)`\]\((dropout_jax/\w+\.py)#L(\d+)\)", text)
    assert len(links) == 21
    for name, path, line in links:
        assert (ROOT / path).read_text().splitlines()[int(line) - 1].startswith(f"def {name}(")


def test_everything_public_has_a_docstring_with_an_example():
    names = [name for name in vars(dropout_jax) if name in dropout_jax.__all__]
    assert names
    for name in names:
        doc = getattr(dropout_jax, name).__doc__
        for part in ("Formula", "Args:", "Returns:", "Raises:", "Example:", ">>>"):
            assert part in doc, f"{name}: {part}"
