"""Every mutation of `make mutants` still has its text to replace."""

import importlib.util
import pathlib
import sys

import pytest

PATH = pathlib.Path(__file__).with_name("mutations.py")


def load():
    spec = importlib.util.spec_from_file_location("mutations", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module
    spec.loader.exec_module(module)
    return module


MUTATIONS = load().MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_has_its_text_once(mutation):
    text = (PATH.parents[2] / mutation.path).read_text()
    assert text.count(mutation.old) == 1
    assert mutation.old != mutation.new
