"""The notebooks of docs/tutorials: they run, what they assert holds, and outputs are committed."""

import os
import pathlib
import re
import sys

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
NAMES = {
    "attention_in_linear_memory.ipynb",
    "drop_in_flax.ipynb",
    "finetune_gpt2.ipynb",
    "mc_dropout.ipynb",
    "port_pytorch.ipynb",
}
# What makes a notebook of more than a minute small: what it says, and what the test says.
SMALLER = {
    "finetune_gpt2.ipynb": {
        "STEPS, PRETRAINING_STEPS, CLASSIFIER_STEPS = 1000, 1000, 200": (
            "STEPS, PRETRAINING_STEPS, CLASSIFIER_STEPS = 2, 2, 2"
        ),
        "RATES = (0.0, 0.2, 0.4)": "RATES = (0.2,)",
        'RATES, ("#D55E00", "#0072B2", "black"), strict=True': 'RATES, ("#D55E00",), strict=True',
    }
}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_runs(path, tmp_path, monkeypatch):
    commands = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", commands)  # the notebook calls minigpt
    notebook = nbformat.read(path, as_version=4)
    for settings, smaller in SMALLER.get(path.name, {}).items():
        (cell,) = (cell for cell in notebook.cells if settings in cell.source)
        cell.source = cell.source.replace(settings, smaller)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert "minigpt: " not in printed.replace("minigpt: checkpoint of step", "")


def test_every_tutorial_is_there():
    assert {path.name for path in NOTEBOOKS} == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_committed_with_outputs_and_without_paths(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "code" in cell.cell_type
    ]
    assert outputs
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run all cells, in order, and save"
    assert not any(output.output_type == "error" for output in outputs)
    assert not re.search(r"/(work|home|root|tmp|Users)/", path.read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_its_links_to_files_resolve(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        assert link.startswith("https://") or (path.parent / link.partition("#")[0]).exists(), link
