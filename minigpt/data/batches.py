"""Which tokens a step sees: batch(seed, step), a pure function."""

from __future__ import annotations

import mmap
from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """Rows of tokens, and for each the token that comes next."""

    inputs: np.ndarray
    targets: np.ndarray


def make_batch(
    tokens: np.ndarray,
    seed: int,
    step: int,
    batch_size: int,
    block_size: int,
    rows: slice = slice(None),
) -> Batch:
    """The windows of a step, whose offsets depend on (seed, step) alone; or `rows` of them."""
    offsets = window_offsets(tokens, seed, step, batch_size, block_size)
    return take_windows(tokens, offsets[rows], block_size)


def window_offsets(
    tokens: np.ndarray, seed: int, step: int, batch_size: int, block_size: int
) -> np.ndarray:
    """Where the windows of a batch begin.

    The places are raw words of Philox, whose stream NumPy promises never to change (that of
    Generator.integers may). The remainder's bias is below 2^-30.
    """
    require_length(tokens, block_size)
    words = np.random.Philox(key=seed, counter=[0, step, 0, 0]).random_raw(batch_size)
    return words % np.uint64(len(tokens) - block_size)


def take_windows(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> Batch:
    """The windows of block_size tokens at `starts`, and the same one token later."""
    index = starts.astype(np.int64)[:, None] + np.arange(block_size + 1)
    rows = tokens[index].astype(np.int32)
    _release_pages(tokens)
    return Batch(rows[:, :-1], rows[:, 1:])


def _release_pages(tokens: np.ndarray) -> None:
    """Unmap what was read of a memory map, or its pages count as this process's for ever after.

    (nanoGPT opens its map anew at every batch for this.) The pages stay in the system's cache.
    """
    mapped = getattr(tokens, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def require_length(tokens: np.ndarray, block_size: int, name: str = "text") -> None:
    """A text must hold one window and the token after it."""
    if len(tokens) <= block_size:
        raise ValueError(
            f"a {name} of {len(tokens)} tokens is not allowed: it must be longer than "
            f"block_size={block_size}. Give more text (a file's last tenth is its validation text) "
            "or a smaller --model.block-size."
        )
