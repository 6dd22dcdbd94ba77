"""The loss on a text, with dropout off: of the whole text, or an estimate from some windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minigpt.data import Answers, Batch, require_length, take_windows


class Evaluation(NamedTuple):
    """The loss on a whole text."""

    loss: float
    """mean, in nats per token"""
    perplexity: float
    bits_per_character: float
    tokens: int
    """number of predicted tokens"""


def evaluate_text(
    eval_step: Callable[[Any, Batch], Any],
    params: Any,
    tokens: np.ndarray,
    characters: int,
    *,
    batch_size: int,
    block_size: int,
    first_characters: int = 1,
) -> Evaluation:
    """Predict every token except the first exactly once.

    `characters` is the text's length, and `first_characters` that of its first token, which nothing
    predicts: bits per character are over the others, so runs with other tokenizers compare.
    """
    require_length(tokens, block_size)
    total = 0.0
    for batch, is_new in _all_windows(tokens, batch_size, block_size):
        total += float(np.asarray(eval_step(params, batch), np.float64)[is_new].sum())
    count, predicted = len(tokens) - 1, max(characters - first_characters, 1)
    loss = total / count
    return Evaluation(loss, math.exp(loss), total / math.log(2) / predicted, count)


def evaluate_answers(
    eval_step: Callable[[Any, Batch], Any],
    params: Any,
    answers: Answers,
    *,
    batch_size: int,
    block_size: int,
) -> Evaluation:
    """Predict every token of the answers; bits per character are over the answers' text.

    The bits of the token or text that ends a turn count, and its characters do not.
    """
    indices = np.arange(len(answers))
    sizes = {"batch_size": batch_size, "block_size": block_size}
    total, count = _sum_answer_losses(eval_step, params, answers, indices, **sizes)
    bits = total / math.log(2) / max(answers.characters, 1)
    return Evaluation(total / count, math.exp(total / count), bits, count)


def estimate_loss(
    eval_step: Callable[[Any, Batch], Any],
    params: Any,
    tokens: np.ndarray | Answers,
    *,
    batches: int,
    batch_size: int,
    block_size: int,
) -> float:
    """Mean loss over `batches` batches of windows, spread evenly over the text.

    Of conversations: over the tokens of the answers of as many as there are rows, or of all.
    """
    if isinstance(tokens, Answers):
        indices = spread_evenly(tokens, batches * batch_size)
        sizes = {"batch_size": batch_size, "block_size": block_size}
        total, count = _sum_answer_losses(eval_step, params, tokens, indices, **sizes)
        return total / count
    require_length(tokens, block_size)
    offsets = np.linspace(0, len(tokens) - block_size - 1, batches * batch_size).astype(np.int64)
    losses = [
        eval_step(params, take_windows(tokens, batch_offsets, block_size))
        for batch_offsets in np.split(offsets, batches)
    ]
    return float(np.mean([np.asarray(loss, np.float64).mean() for loss in losses]))


def spread_evenly(answers: Answers, rows: int) -> np.ndarray:
    """The indices of as many conversations, spread evenly, or of all if there are fewer."""
    count = min(rows, len(answers))
    return np.linspace(0, len(answers) - 1, count).astype(np.int64)


def _sum_answer_losses(
    eval_step: Callable[[Any, Batch], Any],
    params: Any,
    answers: Answers,
    indices: np.ndarray,
    *,
    batch_size: int,
    block_size: int,
) -> tuple[float, int]:
    """The sum of the losses of these conversations' answers, and the number of their tokens."""
    total, count = 0.0, 0
    for batch in answers.batches(indices, batch_size, block_size):
        losses = np.asarray(eval_step(params, Batch(batch.inputs, batch.targets)), np.float64)
        total += float(losses[batch.weights > 0].sum())
        count += int((batch.weights > 0).sum())
    return total, count


def _all_windows(
    tokens: np.ndarray, batch_size: int, block_size: int
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Batches of one shape that cover a text, and a mask of their targets that are new.

    The last window overlaps the one before it, and the last batch is padded.
    """
    last = len(tokens) - 1 - block_size
    offsets = np.append(np.arange(0, last, block_size), last)
    first_new = np.append(offsets[:-1], offsets[-2] + block_size if len(offsets) > 1 else 0)
    for i in range(0, len(offsets), batch_size):
        batch_offsets = offsets[i : i + batch_size]
        padding = batch_size - len(batch_offsets)
        batch = take_windows(tokens, np.pad(batch_offsets, (0, padding)), block_size)
        positions = np.arange(block_size) + batch_offsets[:, None]
        is_new = positions >= first_new[i : i + batch_size, None]
        yield batch, np.pad(is_new, ((0, padding), (0, 0)))
