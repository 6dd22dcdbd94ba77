"""minigpt trains with optax, which relies on implicit dtype promotion."""

import pytest


@pytest.fixture
def promotion():
    return "standard"
