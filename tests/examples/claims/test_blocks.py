"""The claims about stacks of blocks: each script in its smallest form, and how verdicts follow."""

import jax.numpy as jnp
import numpy as np
import pytest
from experiments import load, run_smallest

pytestmark = pytest.mark.claims


def test_a_leak_is_detected():
    """Sums over the past leak nothing; sums over the whole text leak at every position."""
    change = load("block_shapes").largest_change
    first, other = jnp.arange(8.0).reshape(1, 8), jnp.ones((1, 8))
    past = change(lambda x: jnp.cumsum(x, axis=1)[..., None], first, other, position=4)
    assert (past == 0).tolist() == [True] * 4 + [False] * 4
    whole = change(
        lambda x: (x + x.sum(axis=1, keepdims=True))[..., None], first, other, position=4
    )
    assert (whole > 1).all()


def test_every_second_window_ends_a_word():
    text = np.frombuffer(b"Now is the winter of our discontent made glorious summer " * 9, np.uint8)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
    rows, labels = load("features").sample_windows(text, letters, 40, seed=0)
    words = bytes(text).split()
    assert labels.tolist() == [0, 1] * 20
    for row, label in zip(rows.astype(np.uint8), labels, strict=True):
        assert bytes(row) in bytes(text)
        assert (bytes(row).split()[-1] in words) == label


def test_the_token_verdict_requires_the_first_at_chance_and_the_last_above():
    """The interval must lie within two points of chance; containing chance is not enough."""
    features, claim = load("features"), load("common.claim")
    seeds = np.linspace(-0.01, 0.01, 5)

    def verdict(first, last, spread=1):
        runs = [{9: mean + spread * seeds} for mean in (first, last)]
        return features.findings(*runs, {9: seeds}, many=9)[0].verdict

    assert verdict(0.505, 0.7) == claim.HOLDS
    assert verdict(0.505, 0.7, spread=9) == claim.FAILS
    assert verdict(0.53, 0.7) == claim.FAILS
    assert verdict(0.505, 0.49) == claim.FAILS


def test_the_norm_verdicts_follow_the_losses():
    """Losses at two rates; the second is the best for pre-norm, the first for post-norm."""
    norm_order, claim = load("norm_order"), load("common.claim")
    seeds, (pre, post, pre_cold, post_cold) = np.linspace(0, 0.01, 3), norm_order.ORDERS

    def verdicts(cold, at_pres_rate=3.3):
        losses = {pre: (9, 2.6), post: (2.7, at_pres_rate), pre_cold: (9, cold), post_cold: (3, 9)}
        chosen_rates = {(8, *cell): int(cell[0] == "pre") for cell in losses}
        measured = {(8, *cell): np.array(each)[:, None] + seeds for cell, each in losses.items()}
        results = norm_order.findings(measured, chosen_rates, (8,))
        return [finding.verdict == claim.HOLDS for finding in results]

    assert verdicts(2.62) == [True, True, True, True]
    assert verdicts(2.66) == [True, True, True, False]
    assert verdicts(3.1) == [False, True, True, False]
    assert verdicts(2.62, at_pres_rate=2.5) == [True, True, False, True]


def test_norm_order(tmp_path):
    cells = run_smallest("norm_order", tmp_path)["numbers"]
    rates = {str(rate) for rate in load("norm_order").RATES}
    assert {rate for cell in cells.values() for rate in cell["loss by learning rate"]} == rates
    # Order, warm-up and learning rate all matter.
    losses = [
        each["mean"] for cell in cells.values() for each in cell["loss by learning rate"].values()
    ]
    assert len(losses) == len(set(losses)) == 8


def test_block_shapes(tmp_path):
    result = run_smallest("block_shapes", tmp_path)
    assert [finding["verdict"] for finding in result["findings"]] == ["holds", "holds"]
    for change in result["numbers"]["largest change by position"].values():
        assert max(change[:32]) == 0 < min(change[32:])


def test_features(tmp_path):
    numbers = run_smallest("features", tmp_path)["numbers"]
    # A first token's features are those of its character, whatever follows.
    for features, characters in numbers["different first features and characters"]:
        assert features == characters > 10
