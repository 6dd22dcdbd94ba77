"""The batch of a step: a pure function of the tokens, the seed and the step."""

from __future__ import annotations

import functools
import mmap
from typing import NamedTuple, overload

import numpy as np

from minigpt.data.answers import AnswerBatch, Answers

# A validation text with fewer windows than this gives a loss that says little.
FEW_WINDOWS = 10


class Batch(NamedTuple):
    """Rows of tokens, and the next token for each of them."""

    inputs: np.ndarray
    targets: np.ndarray


@overload
def make_batch(
    tokens: np.ndarray,
    seed: int,
    step: int,
    batch_size: int,
    block_size: int,
    *,
    rows: slice = slice(None),
) -> Batch: ...


@overload
def make_batch(
    tokens: np.ndarray | Answers,
    seed: int,
    step: int,
    batch_size: int,
    block_size: int,
    *,
    rows: slice = slice(None),
) -> Batch | AnswerBatch: ...


def make_batch(
    tokens: np.ndarray | Answers,
    seed: int,
    step: int,
    batch_size: int,
    block_size: int,
    *,
    rows: slice = slice(None),
) -> Batch | AnswerBatch:
    """The batch of a step, or `rows` of it; seed and step decide its windows or conversations.

    `inputs` and `targets` are int32 of shape (batch_size, block_size).
    """
    if isinstance(tokens, Answers):
        indices = example_indices(seed, step, len(tokens), batch_size)
        return tokens.take(indices[rows], block_size)
    offsets = window_offsets(tokens, seed, step, batch_size, block_size)
    return take_windows(tokens, offsets[rows], block_size)


def describe_rows(rows: list[int], *, is_text: bool) -> str:
    """What `batch_rows` says, in words."""
    if is_text:
        return f"first tokens of the batch's rows, as positions in the training text: {rows}"
    return f"conversations of the batch's rows, from 0 in the training part: {rows}"


def batch_rows(
    tokens: np.ndarray | Answers, seed: int, step: int, batch_size: int, block_size: int
) -> list[int]:
    """The first token of each window in a step's batch, or the index of each conversation."""
    if isinstance(tokens, Answers):
        return example_indices(seed, step, len(tokens), batch_size).tolist()
    return window_offsets(tokens, seed, step, batch_size, block_size).tolist()


def example_indices(seed: int, step: int, examples: int, batch_size: int) -> np.ndarray:
    """The examples of a step, a function of seed and step: each example once per epoch.

    The order of an epoch is that of raw words of Philox, whose stream NumPy promises not to change.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, positions_in_epoch = np.divmod(positions, examples)
    orders = {epoch: _epoch_order(seed, int(epoch), examples) for epoch in np.unique(epochs)}
    return np.array([orders[e][i] for e, i in zip(epochs, positions_in_epoch, strict=True)])


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    words = np.random.Philox(key=seed, counter=[0, epoch, 1, 0]).random_raw(examples)
    return np.argsort(words, kind="stable")


def window_offsets(
    tokens: np.ndarray, seed: int, step: int, batch_size: int, block_size: int
) -> np.ndarray:
    """The index of the first token of each window in a batch: uint64 of shape (batch_size,).

    The offsets are raw words of Philox, modulo the number of windows. NumPy promises never to
    change the stream of raw words (the stream of Generator.integers may change). The modulo bias is
    below 2^-30.
    """
    require_length(tokens, block_size)
    words = np.random.Philox(key=seed, counter=[0, step, 0, 0]).random_raw(batch_size)
    return words % np.uint64(len(tokens) - block_size)


def take_windows(tokens: np.ndarray, offsets: np.ndarray, block_size: int) -> Batch:
    """The windows of block_size tokens at `offsets`; the targets are shifted by one token."""
    indices = offsets.astype(np.int64)[:, None] + np.arange(block_size + 1)
    windows = tokens[indices].astype(np.int32)
    _release_pages(tokens)
    return Batch(windows[:, :-1], windows[:, 1:])


def _release_pages(tokens: np.ndarray) -> None:
    """Release the pages of a memory map that were read, so that the process's memory stays small.

    They stay in the cache of the operating system. nanoGPT reopens its map for every batch instead.
    """
    memory_map = getattr(tokens, "_mmap", None)
    if memory_map is not None and hasattr(mmap, "MADV_DONTNEED"):
        memory_map.madvise(mmap.MADV_DONTNEED)


def describe_short_validation(tokens: np.ndarray | Answers, block_size: int) -> str | None:
    """A line that says how few windows a validation text has; None if there are enough."""
    if isinstance(tokens, Answers):
        if (count := len(tokens)) >= FEW_WINDOWS:
            return None
        return (
            f"the validation part has {count} conversation{'s' * (count > 1)}, so its loss is a "
            "rough estimate: give it a file of its own with --val-data, or more conversations"
        )
    windows = (len(tokens) - 1) // block_size
    if windows >= FEW_WINDOWS:
        return None
    return (
        f"the validation text has {windows} window{'s' * (windows > 1)} of "
        f"block_size={block_size} tokens, so its loss is a rough estimate: give it a text of its "
        "own with --val-data, or more text"
    )


def require_length(
    tokens: np.ndarray, block_size: int, name: str = "text", remedy: str = "Give more text."
) -> None:
    """Raise ValueError if a text is too short for one window and the token after it."""
    if len(tokens) <= block_size:
        raise ValueError(
            f"a {name} of {len(tokens)} tokens is not allowed: it must be longer than "
            f"block_size={block_size}. {remedy}"
        )
