"""Marks of parameters: what `make test` leaves to `make test-all`."""

import pytest
from op_registry import FAMILIES, OPS


def slow(*values):
    """A parameter set that only `make test-all` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


# One op of each family for every change; the others are slow.
ONE_OP_A_FAMILY = pytest.mark.parametrize(
    "op", [op if op.name in FAMILIES else slow(op) for op in OPS], ids=str
)
