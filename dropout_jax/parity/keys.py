"""The key that reaches a framework's bernoulli, from what its user holds.

Each function takes the key (or the seed) that the user passed, and which call it is; what it gives
goes to `bernoulli.keep_mask`. Equinox needs none: its layers use the key they are called with.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Key, UInt32


def linen(key, path: tuple[str, ...], call: int = 1) -> Key[Array, ""]:
    """The key of the `call`-th dropout of a flax.linen module, from rngs={"dropout": key}.

    Formula: fold_in(key, the first four bytes, big-endian, of the SHA-1 of the path's names and the
    call's number, one after the other).

    Args:
      key: what the user passed for the stream "dropout".
      path: the names of the modules from the outermost's child on: ("Block_0", "Dropout_0"); () for
        a Dropout that is applied by itself.
      call: 1 for the module's first call in this apply.

    Returns:
      A key of the same kind.

    Raises:
      OverflowError: for a negative call.

    Source: flax 0.12, flax/core/scope.py (with flax_fix_rng_separator off, its default).

    Example:
      >>> import jax
      >>> from dropout_jax.parity import keys
      >>> keys.linen(jax.random.key(0), ("Dropout_0",)).shape
      ()
    """
    number = call.to_bytes((call.bit_length() + 7) // 8, "big")
    digest = hashlib.sha1(b"".join(name.encode() for name in path) + number).digest()
    return jax.random.fold_in(key, int.from_bytes(digest[:4], "big"))


def nnx(key, count: int = 0) -> Key[Array, ""]:
    """The key of the draw number `count` (from 0) of a flax.nnx stream that began with `key`.

    Formula: fold_in(key, count). nnx.Rngs(0) begins its streams with jax.random.key(0), and so does
    nnx.Rngs(dropout=0) its own; a fork begins with the key that its parent would have drawn. Since
    flax 0.11 nnx.Dropout(..., rngs=rngs) holds a fork of the stream "dropout".

    Args:
      key: the stream's key.
      count: how many keys were drawn of the stream before.

    Returns:
      A key of the same kind.

    Raises:
      TypeError: from JAX, for what is not a key.

    Source: flax 0.12, flax/nnx/rnglib.py.

    Example:
      >>> import jax
      >>> from dropout_jax.parity import keys
      >>> keys.nnx(jax.random.key(0), 3) == jax.random.fold_in(jax.random.key(0), 3)
      Array(True, dtype=bool)
    """
    return jax.random.fold_in(key, count)


def haiku(key, call: int = 1) -> Key[Array, ""]:
    """The `call`-th key of hk.next_rng_key() in one apply(params, key, ...).

    Formula: key, sub = split(key), `call` times; the last sub.

    Args:
      key: what the user passed to apply.
      call: 1 for the first key that anything asks for.

    Returns:
      A key of the same kind.

    Raises:
      ValueError: for a call below 1.

    Source: haiku 0.0.16, haiku/_src/base.py (with rng_reserve_size 1, its default).

    Example:
      >>> import jax
      >>> from dropout_jax.parity import keys
      >>> keys.haiku(jax.random.key(0)) == jax.random.split(jax.random.key(0))[1]
      Array(True, dtype=bool)
    """
    if call < 1:
        raise ValueError(f"call={call} is not allowed: it must be at least 1, the first key.")
    for _ in range(call):
        key, sub = jax.random.split(key)
    return sub


def keras(seed: int, call: int = 0) -> UInt32[Array, "2"]:
    """The raw key of the call number `call` (from 0) of a Keras layer with a seed, on JAX.

    Formula: the two words are the seed and the call's number: nothing is hashed.

    Args:
      seed: as in keras.layers.Dropout(rate, seed=seed).
      call: how many times the layer was called in training before.

    Returns:
      Two uint32 words.

    Raises:
      OverflowError: for a number that does not fit 32 bits.

    Source: keras 3, keras/src/random/seed_generator.py.

    Example:
      >>> from dropout_jax.parity import keys
      >>> keys.keras(7, 2)
      Array([7, 2], dtype=uint32)
    """
    return jnp.array([seed, call], jnp.uint32)
