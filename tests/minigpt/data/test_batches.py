"""make_batch: a pure function of the seed and the step."""

import numpy as np
import pytest

from minigpt.data.batches import make_batch, window_offsets

TOKENS = np.arange(1000, dtype=np.uint16)


def test_rows_are_windows_and_targets_come_next():
    inputs, targets = make_batch(TOKENS, 0, 0, 5, 16)
    assert inputs.shape == targets.shape == (5, 16)
    assert (np.diff(inputs, axis=1) == 1).all()
    np.testing.assert_array_equal(targets, inputs + 1)


def test_seed_and_step_decide_and_nothing_else():
    first = make_batch(TOKENS, 7, 3, 5, 16).inputs
    np.random.seed(0)
    make_batch(TOKENS, 7, 4, 5, 16)
    np.testing.assert_array_equal(make_batch(TOKENS, 7, 3, 5, 16).inputs, first)
    assert (make_batch(TOKENS, 7, 4, 5, 16).inputs != first).any()
    assert (make_batch(TOKENS, 8, 3, 5, 16).inputs != first).any()


def test_known_answer():
    """The places for (1337, 0), which no later version may change."""
    assert make_batch(TOKENS, 1337, 0, 4, 16).inputs[:, 0].tolist() == [953, 803, 526, 325]


def test_every_window_is_drawn_alike():
    tokens = TOKENS[:26]  # ten windows of 16
    starts = np.concatenate(
        [make_batch(tokens, 0, step, 100, 16).inputs[:, 0] for step in range(100)]
    )
    counts = np.bincount(starts, minlength=10)
    assert len(counts) == 10
    assert abs(counts - 1000).max() < 4.9 * 30  # sd of binomial(10000, 0.1) is 30


def test_a_short_text_is_an_error():
    make_batch(TOKENS[:17], 0, 0, 5, 16)
    with pytest.raises(ValueError, match="longer than block_size=16"):
        make_batch(TOKENS[:16], 0, 0, 5, 16)


def test_offsets_are_philoxs_words_of_seed_and_step():
    """Known answers, and every step has windows of its own."""
    tokens = np.zeros(1000, np.uint16)
    offsets = [window_offsets(tokens, 7, step, 4, 16) for step in range(20)]
    for step in (0, 1, 19):
        words = np.random.Philox(key=7, counter=[0, step, 0, 0]).random_raw(4)
        np.testing.assert_array_equal(offsets[step], words % np.uint64(984))
    assert len({tuple(each.tolist()) for each in offsets}) == 20
