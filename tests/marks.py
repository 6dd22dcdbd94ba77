"""Marks of single parameters."""

import pytest


def slow(*values):
    """A parameter set that `make test` leaves to `make test-all`."""
    return pytest.param(*values, marks=pytest.mark.slow)
