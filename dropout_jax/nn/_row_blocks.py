"""Apply a function to blocks of rows in turn, so that a CPU's cache holds what it computes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

MAX_BYTES = 2**23  # of the largest array that a block computes


def count_blocks(rows: int, nbytes: int) -> int:
    """Return how many equal blocks of rows have at most MAX_BYTES each; 1 but on a CPU.

    An accelerator has no such cache and is faster with all rows at once. The number of rows, and
    with it the size, may be symbolic in an exported program.
    """
    if jax.default_backend() != "cpu" or not isinstance(rows, int) or not isinstance(nbytes, int):
        return 1
    return next((n for n in range(1, rows) if rows % n == 0 and nbytes <= n * MAX_BYTES), rows or 1)


def map_row_blocks(fn: Callable[..., jax.Array], x: jax.Array, blocks: int) -> jax.Array:
    """Return fn(x, 0), computed as fn(block, index of its first row) for each block of rows.

    The backward pass computes each block again instead of keeping what it computed.
    """
    if blocks == 1:
        return fn(x, None)
    size = len(x) // blocks
    first_rows = size * jnp.arange(blocks, dtype=jnp.uint32)
    step = jax.checkpoint(fn)
    out = lax.map(lambda block: step(*block), (x.reshape(blocks, size, *x.shape[1:]), first_rows))
    return out.reshape(len(x), *out.shape[2:])
