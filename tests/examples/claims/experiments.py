"""Imports the modules of examples/claims, and runs a script in its smallest form."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import jax

ROOT = Path(__file__).parents[3]
CLAIMS = ROOT / "examples" / "claims"
SHARED = ("common", "pages")  # folders without scripts
SCRIPTS = sorted(path for path in CLAIMS.glob("*/*.py") if path.parent.name not in SHARED)
sys.path[:0] = [*sorted({str(path.parent) for path in SCRIPTS}), str(CLAIMS), str(CLAIMS.parent)]


def load(name: str) -> ModuleType:
    """A module of examples/claims: a script by its file's name, others such as `common.data`."""
    return importlib.import_module(name)


def run_smallest(name: str, folder: Path) -> dict:
    """The JSON that a script's smallest form writes; checks that its figure is written too."""
    script, claim = load(name), load("common.claim")
    arguments = ["--smallest", "--out", str(folder)]
    with jax.numpy_dtype_promotion("standard"):  # optax
        path = claim.main(script.experiment, script.__doc__, script.__file__, arguments)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    result = json.loads(path.read_text())
    assert result["scale"] == "smallest"
    assert result["findings"]
    return result
