"""Model FLOPs utilization, and that none is guessed."""

import pytest

from minigpt.config import PRESETS
from minigpt.training.throughput import flops_per_token, share_of_peak


def test_gpt2_by_hand():
    """124,439,808 parameters: 6 of each, and 12 * 12 * 768 * 1024 for attention."""
    assert flops_per_token(PRESETS["gpt2"].model, 124_439_808) == 746_638_848 + 113_246_208


def test_the_share_of_all_devices_peaks():
    assert share_of_peak(989e12, "NVIDIA H100 80GB HBM3", 2) == pytest.approx(0.5)
    assert share_of_peak(27.5e12, "TPU v4", 1) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA GeForce RTX 4090", "TPU v5"])
def test_an_unknown_peak_is_not_guessed(kind):
    assert share_of_peak(1e12, kind, 1) is None
