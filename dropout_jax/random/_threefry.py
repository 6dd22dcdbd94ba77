"""Threefry-2x32, unrolled: JAX's bits without the loop that JAX makes of it on a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry2x32(key, counter):
    """The block of a key and a counter, two words each, in 20 rounds; elementwise."""
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


def fold_in(key: jax.Array, data) -> jax.Array:
    """`jax.random.fold_in`, which for a threefry2x32 key is the block of the counter (0, data).

    (JAX's own is a loop of some fifty small kernels on a CPU, 0.06 ms at each use of a mask. This
    is one kernel; it takes longer to compile, so `keys.fold`, of which a model has many, is JAX's.)
    """
    if jax.random.key_impl(key) != "threefry2x32":
        return jax.random.fold_in(key, data)
    words = jax.random.key_data(key)
    block = threefry2x32((words[0], words[1]), (jnp.uint32(0), jnp.uint32(data)))
    return jax.random.wrap_key_data(jnp.stack(block), impl="threefry2x32")
