"""The loss of a text: every token once, in windows of the context's length, dropout off."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minigpt.data import Batch, require_length, take_windows


class Evaluation(NamedTuple):
    """Mean loss in nats a token, its perplexity, and bits a character."""

    loss: float
    perplexity: float
    bits_per_character: float
    tokens: int


def evaluate_text(
    eval_step: Callable[[Any, Batch], Any],
    params: Any,
    tokens: np.ndarray,
    characters: int,
    *,
    batch_size: int,
    block_size: int,
) -> Evaluation:
    """Predict every token but the first exactly once; `characters` is the text's length."""
    require_length(tokens, block_size)
    total = 0.0
    for batch, new in _all_windows(tokens, batch_size, block_size):
        total += float(np.asarray(eval_step(params, batch), np.float64)[new].sum())
    count = len(tokens) - 1
    loss = total / count
    return Evaluation(loss, math.exp(loss), total / math.log(2) / max(characters - 1, 1), count)


def estimate_loss(
    eval_step: Callable[[Any, Batch], Any],
    params: Any,
    tokens: np.ndarray,
    *,
    batches: int,
    batch_size: int,
    block_size: int,
) -> float:
    """Mean loss over `batches` batches of windows spread evenly over the text, always the same."""
    require_length(tokens, block_size)
    starts = np.linspace(0, len(tokens) - block_size - 1, batches * batch_size).astype(np.int64)
    losses = [
        eval_step(params, take_windows(tokens, rows, block_size))
        for rows in np.split(starts, batches)
    ]
    return float(np.mean([np.asarray(loss, np.float64).mean() for loss in losses]))


def _all_windows(tokens, batch_size: int, block_size: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Batches of one shape, and which of their targets were not counted before."""
    last = len(tokens) - 1 - block_size
    starts = np.append(np.arange(0, last, block_size), last)
    first_new = np.append(starts[:-1], starts[-2] + block_size if len(starts) > 1 else 0)
    for begin in range(0, len(starts), batch_size):
        rows = starts[begin : begin + batch_size]
        new_from = first_new[begin : begin + batch_size]
        padding = batch_size - len(rows)
        batch = take_windows(tokens, np.pad(rows, (0, padding)), block_size)
        place = np.arange(block_size) + rows[:, None]
        new = np.pad(place >= new_from[:, None], ((0, padding), (0, 0)))
        yield batch, new
