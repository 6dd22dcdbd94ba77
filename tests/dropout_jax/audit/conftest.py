"""The models under audit use dtypes as people do, with JAX's implicit promotion."""

import pytest

collect_ignore_glob = ["bugs/*", "correct/*", "*_models.py"]  # no tests: models


@pytest.fixture
def promotion():
    return "standard"
