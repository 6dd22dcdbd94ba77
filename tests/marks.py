"""Marks of parameters: what `make test` leaves to `make test-all`."""

import pytest
from op_registry import FAMILIES, OPS


def slow(*values):
    """A parameter set that only `make test-all` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def one_op_a_family(*excluded):
    """One op of each family for every change; the others are slow, and `excluded` are left out."""
    ops = [op for op in OPS if op.name not in excluded]
    return pytest.mark.parametrize(
        "op", [op if op.name in FAMILIES else slow(op) for op in ops], ids=str
    )


ONE_OP_A_FAMILY = one_op_a_family()
