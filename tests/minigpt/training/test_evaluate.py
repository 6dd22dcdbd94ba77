"""Every token once, and the same windows each time."""

import math

import numpy as np
import pytest

from minigpt.training.evaluate import estimate_loss, evaluate_text


def target_as_loss(params, batch):
    """A stand-in model whose loss is the target itself, so sums can be counted by hand."""
    return batch.targets.astype(np.float32)


@pytest.mark.parametrize("length", [9, 10, 16, 17, 18, 64, 65, 100])
def test_every_token_but_the_first_counts_once(length):
    tokens = np.arange(length, dtype=np.uint16)
    result = evaluate_text(target_as_loss, None, tokens, length, batch_size=3, block_size=8)
    assert result.tokens == length - 1
    assert result.loss == pytest.approx(tokens[1:].mean())


def test_perplexity_and_bits():
    tokens = np.ones(65, np.uint16)
    result = evaluate_text(target_as_loss, None, tokens, 33, batch_size=3, block_size=8)
    assert result.loss == 1
    assert result.perplexity == pytest.approx(math.e)
    assert result.bits_per_character == pytest.approx(2 / math.log(2))  # two tokens a character
    result = evaluate_text(
        target_as_loss, None, tokens, 34, batch_size=3, block_size=8, first_characters=2
    )
    assert result.bits_per_character == pytest.approx(2 / math.log(2))


def test_estimate_spreads_windows_over_the_whole_text():
    inputs = []

    def spy(params, batch):
        inputs.append(batch.inputs)
        return target_as_loss(params, batch)

    tokens = np.arange(1000, dtype=np.uint16)
    loss = estimate_loss(spy, None, tokens, batches=4, batch_size=5, block_size=8)
    starts = np.concatenate(inputs)[:, 0]
    assert (starts[0], starts[-1], len(starts)) == (0, 991, 20)
    assert loss == pytest.approx(np.concatenate(inputs).mean() + 1)
