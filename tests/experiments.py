"""Runs a claim's script in its smallest form."""

import importlib
import json
import pathlib
import sys

import jax

CLAIMS = pathlib.Path(__file__).parent.parent / "examples" / "claims"


def load(name):
    """A module of examples/claims."""
    if str(CLAIMS) not in sys.path:
        sys.path.insert(0, str(CLAIMS))
    return importlib.import_module(name)


def found(name, folder):
    """The JSON of the script's smallest form; its picture is there too."""
    script, claim = load(name), load("common.claim")
    words = ["--smallest", "--out", str(folder)]
    with jax.numpy_dtype_promotion("standard"):  # optax
        path = claim.main(script.experiment, script.__doc__, script.__file__, words)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    result = json.loads(path.read_text())
    assert result["scale"] == "smallest"
    assert result["findings"]
    return result
