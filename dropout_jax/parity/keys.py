"""Derive the key of the bernoulli call of a framework from the key of its user.

Each function takes the key (or the seed) that the user passes, and the number of the call; pass its
result to `bernoulli.keep_mask`. Equinox needs none: its layers use the key of the call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dropout_jax import _validation

if TYPE_CHECKING:
    from jaxtyping import Array, Shaped, UInt32


def linen(key: jax.Array, path: Sequence[str], call: int = 1) -> Shaped[Array, "*words"]:
    """Derive the key of the `call`-th dropout of a flax.linen module, from rngs={"dropout": key}.

    Formula: fold_in(key, the first four bytes, big-endian, of the SHA-1 of the path's names and the
    number of the call, concatenated).

    Args:
      key: the key that the user passes for the stream "dropout".
      path: the names of the modules below the outermost, ("Block_0", "Dropout_0"); () for a Dropout
        that is itself the outermost.
      call: 1 for the first call of the module in this apply.

    Returns:
      A key of the same implementation.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: flax 0.12, flax/core/scope.py (with flax_fix_rng_separator off, its default).

    Example:
      >>> import jax
      >>> from dropout_jax.parity import keys
      >>> keys.linen(jax.random.key(0), ("Dropout_0",)).shape
      ()
    """
    _check_key(key)
    call = _validation.check_integer(call, "call", 1)
    if not isinstance(path, tuple | list) or not all(isinstance(name, str) for name in path):
        allowed = "a tuple or list of names"
        remedy = "Pass ('Block_0', 'Dropout_0'), or () for the outermost module."
        _validation.fail(TypeError, "path", path, allowed, remedy)
    number = call.to_bytes((call.bit_length() + 7) // 8, "big")
    digest = hashlib.sha1(b"".join(name.encode() for name in path) + number).digest()
    word = _validation.put_number(int.from_bytes(digest[:4], "big"), np.uint32)
    return jax.random.fold_in(key, word)


def nnx(key: jax.Array, count: int | jax.Array = 0) -> Shaped[Array, "*words"]:
    """Derive the key of draw number `count` (from 0) of a flax.nnx stream of `key`.

    Formula: fold_in(key, count). The key of the streams of nnx.Rngs(0) and nnx.Rngs(dropout=0) is
    jax.random.key(0); that of a fork is the next key of its parent. Since flax 0.11,
    nnx.Dropout(..., rngs=rngs) has a fork of the stream "dropout".

    Args:
      key: the key of the stream.
      count: the number of earlier draws, below 2^32; traced or not.

    Returns:
      A key of the same implementation.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: flax 0.12, flax/nnx/rnglib.py.

    Example:
      >>> import jax
      >>> from dropout_jax.parity import keys
      >>> keys.nnx(jax.random.key(0), 3) == jax.random.fold_in(jax.random.key(0), 3)
      Array(True, dtype=bool)
    """
    _check_key(key)
    return jax.random.fold_in(key, _check_word(count, "count"))


def haiku(key: jax.Array, call: int = 1) -> Shaped[Array, "*words"]:
    """Derive the `call`-th key of hk.next_rng_key() in one apply(params, key, ...).

    Formula: key, sub = split(key), `call` times; the last sub.

    Args:
      key: the key that the user passes to apply.
      call: 1 for the first call of hk.next_rng_key() in the model.

    Returns:
      A key of the same implementation.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: haiku 0.0.16, haiku/_src/base.py (with rng_reserve_size 1, its default).

    Example:
      >>> import jax
      >>> from dropout_jax.parity import keys
      >>> keys.haiku(jax.random.key(0)) == jax.random.split(jax.random.key(0))[1]
      Array(True, dtype=bool)
    """
    typed_key = _check_key(key)
    call = _validation.check_integer(call, "call", 1, 2**31 - 1)
    last = _split_again(typed_key, _validation.put_number(call, np.int32))
    # A raw key of any implementation is uint32: jit would take one for another.
    return last if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.key_data(last)


@jax.jit
def _split_again(key: jax.Array, call: jax.Array) -> jax.Array:
    """Split `call` times, each time the first key of the last split; return the last second."""
    keys = jnp.stack([key, key])
    return lax.fori_loop(jnp.int32(0), call, lambda _, keys: jax.random.split(keys[0]), keys)[1]


def keras(seed: int | jax.Array, call: int | jax.Array = 0) -> UInt32[Array, "2"]:
    """Derive the raw key of call number `call` (from 0) of a Keras layer with a seed, on JAX.

    Formula: the two words are the seed and the number of the call, without a hash.

    Args:
      seed: as in keras.layers.Dropout(rate, seed=seed), from 0 to 2^32 - 1; traced or not.
      call: the number of earlier calls of the layer in training; traced or not.

    Returns:
      Two uint32 words.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Source: keras 3, keras/src/random/seed_generator.py.

    Example:
      >>> from dropout_jax.parity import keys
      >>> keys.keras(7, 2)
      Array([7, 2], dtype=uint32)
    """
    return jnp.stack([_check_word(seed, "seed"), _check_word(call, "call")])


def _check_word(value: int | jax.Array, name: str) -> jax.Array:
    """Return an integer below 2^32, traced or not, as uint32."""
    word = _validation.check_scalar_integer(value, name, 0, 2**32 - 1)
    if isinstance(word, int):
        return _validation.put_number(word, np.uint32)
    return word.astype(jnp.uint32)


def _check_key(key: jax.Array) -> jax.Array:
    """Return the key as a typed one."""
    typed_key = _validation.check_key(key)
    if typed_key is None:
        raise TypeError("key=None is not allowed: key must be one PRNG key. Pass the user's key.")
    return typed_key
