"""Both columns of docs/guides/migrating.md run, and agree where nothing is dropped."""

import doctest
import os
import pathlib
import re

import jax
import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported
PAGE = pathlib.Path(__file__).parents[2] / "docs/guides/migrating.md"
SECTIONS = re.split(r"(?m)^## ", PAGE.read_text())[1:]
ROW = re.compile(r"(?m)^\| `(.+)` \| `(.+)` \|$")
# Evaluation: both sides have the input's values.
IS_OFF = re.compile(r"eval\(\)|training=False|deterministic=True|inference|is_training else")


def namespaces():
    """What the blocks of each section define, after those of the sections before it."""
    names = {}
    for section in SECTIONS:
        for example in doctest.DocTestParser().get_examples(section):
            exec(example.source, names)
        yield section.partition("\n")[0], dict(names)


def their_names(framework, names):
    """The names of the left column: PyTorch's tensors, and Keras's layers."""
    if framework == "PyTorch":
        import torch

        q = torch.ones(2, 4, 5, 8)
        tensors = {
            "x": torch.ones(2, 5, 16),
            "image": torch.ones(2, 3, 8, 8),
            "q": q,
            "k": q,
            "v": q,
        }
        return {"torch": torch, "F": torch.nn.functional} | tensors
    if framework == "Keras":
        from keras import layers

        return names | {"layers": layers}
    return names


def run(line, names, framework):
    if re.match(r"\w+ = ", line):
        exec(line, names)
        return None
    if framework == "Haiku":
        import haiku

        return haiku.transform(lambda: eval(line, names)).apply({}, jax.random.key(0))
    return eval(line, names)


CASES = [
    (name, *row, names)
    for (name, names), section in zip(namespaces(), SECTIONS, strict=True)
    for row in ROW.findall(section)
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("framework", "theirs", "ours", "names"), CASES, ids=[f"{case[0]}: {case[1]}" for case in CASES]
)
def test_both_lines_run_and_agree(framework, theirs, ours, names):
    with jax.numpy_dtype_promotion("standard"):  # Haiku multiplies by booleans
        their_value = run(theirs, their_names(framework, names), framework)
    our_value = run(ours, dict(names), framework)
    if our_value is None or their_value is None:  # a seed has no shape
        return
    assert tuple(their_value.shape) == our_value.shape
    assert np.isfinite(np.asarray(our_value)).all()
    if IS_OFF.search(theirs):
        np.testing.assert_array_equal(their_value, our_value)
    elif "ttention" not in ours and "Transformer" not in ours:
        assert (
            np.asarray(our_value) != np.asarray(names["image" if "image" in ours else "x"])
        ).any()


def test_every_row_of_every_table_is_read():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(CASES) > 25
