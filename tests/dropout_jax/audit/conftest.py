"""The models under audit use dtypes as people do, with JAX's implicit promotion."""

import pytest


@pytest.fixture
def promotion():
    return "standard"
