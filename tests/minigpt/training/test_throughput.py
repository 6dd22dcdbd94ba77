"""Model FLOPs utilization, and that none is guessed."""

import jax
import pytest
from flax import nnx
from tiny import LLAMA

from minigpt.config import PRESETS
from minigpt.model import GPT
from minigpt.training.throughput import (
    count_multiplied_parameters,
    flops_per_token,
    peak_flops_per_s,
    share_of_peak,
)


def test_gpt2_by_hand():
    """124,439,808 parameters: 6 of each, and 12 * 12 * 768 * 1024 for attention."""
    assert flops_per_token(PRESETS["gpt2"].model, 124_439_808) == 746_638_848 + 113_246_208


def test_a_token_table_that_is_only_looked_up_is_not_counted():
    """Llama by hand: 2 blocks of width 16, 4 heads, 2 of keys and values, an MLP of 24; 11 rows."""
    params = nnx.state(nnx.eval_shape(lambda: GPT(LLAMA, 11, rngs=nnx.Rngs(0))))
    block = 16 * 16 * 2 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16
    assert count_multiplied_parameters(LLAMA, params) == 2 * block + 16 + 11 * 16
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2 * block + 16 + 2 * 11 * 16
    gpt2 = nnx.state(nnx.eval_shape(lambda: GPT(PRESETS["gpt2"].model, 50257, rngs=nnx.Rngs(0))))
    assert count_multiplied_parameters(PRESETS["gpt2"].model, gpt2) == 124_439_808


def test_the_share_of_all_devices_peaks():
    assert share_of_peak(989e12, "NVIDIA H100 80GB HBM3", 2) == pytest.approx(0.5)
    assert share_of_peak(27.5e12, "TPU v4", 1) == pytest.approx(0.1)


# As XLA:TPU and a GPU name them.
@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
    ],
)
def test_the_peak_of_every_chip_that_plan_knows(kind, peak):
    assert peak_flops_per_s(kind) == peak


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA GeForce RTX 4090", "TPU v3"])
def test_an_unknown_peak_is_not_guessed(kind):
    assert share_of_peak(1e12, kind, 1) is None
