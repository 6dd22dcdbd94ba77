"""Threefry-2x32, unrolled: JAX's bits without the loop that JAX compiles on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Key, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


@jax.jit  # traced once for its eight calls in a mask
def threefry2x32(
    key: tuple[UInt32[Array, "*#words"], UInt32[Array, "*#words"]],
    counter: tuple[UInt32[Array, "*#words"], UInt32[Array, "*#words"]],
) -> tuple[UInt32[Array, "*words"], UInt32[Array, "*words"]]:
    """Compute the block of a key and a counter, two words each, in 20 rounds; elementwise."""
    (key0, key1), (x0, x1) = key, counter
    schedule = (key0, key1, key0 ^ key1 ^ jnp.uint32(_PARITY))
    x0, x1 = x0 + schedule[0], x1 + schedule[1]
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << distance) | (x1 >> (32 - distance))
            x1 = x1 ^ x0
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1


def fold_in(key: Key[Array, ""], data: int) -> Key[Array, ""]:
    """Fold as `jax.random.fold_in`; for threefry2x32 it is the block of the counter (0, data).

    (JAX compiles its own fold_in to a loop of some fifty small kernels on a CPU, 0.06 ms for each
    mask. This is one kernel, but it takes longer to compile. A model calls `fold` many times, so
    `fold` uses JAX's.)
    """
    if jax.random.key_impl(key) != "threefry2x32":
        return jax.random.fold_in(key, data)
    words = jax.random.key_data(key)
    block = threefry2x32((words[0], words[1]), (jnp.uint32(0), jnp.uint32(data)))
    return jax.random.wrap_key_data(jnp.stack(block), impl="threefry2x32")
