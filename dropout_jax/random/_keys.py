"""Keys by name: each dropout site and each step derives its own key from one root."""

from __future__ import annotations

import hashlib
from typing import overload

import jax
import numpy as np

from dropout_jax import _validation

PathPart = str | int | np.integer | jax.Array


@overload
def fold(key: None, *path: PathPart) -> None: ...


@overload
def fold(key: jax.Array, *path: PathPart) -> jax.Array: ...


def fold(key: jax.Array | None, *path: PathPart) -> jax.Array | None:
    """Derive a key by a path of names, so that adding a name changes no other key.

    Formula: `key = jax.random.fold_in(key, word)` for each part in turn. The word of an integer is
    the integer; the word of a string is the first four bytes, big-endian, of the SHA-256 of its
    UTF-8 form. Hence `fold(fold(key, "a"), 1) == fold(key, "a", 1)`.

    Args:
      key: one PRNG key, typed or raw, or None.
      *path: strings, and integers in [0, 2^32), traced or not (a layer's index in a scan).

    Returns:
      A typed key of the same implementation; None if `key` is None, so that evaluation
      (`key=None`) passes through a whole model.

    Raises:
      TypeError: a part is neither a string nor an integer, or `key` is not a key.
      ValueError: an integer does not fit 32 bits, or `key` is a batch of keys.

    Example:
      >>> import jax
      >>> from dropout_jax import fold
      >>> root = jax.random.key(0)
      >>> fold(root, "block", 3, "attn_out") == fold(fold(root, "block"), 3, "attn_out")
      Array(True, dtype=bool)
      >>> fold(None, "block", 3) is None
      True
    """
    words = [_path_word(part) for part in path]
    key = _validation.check_key(key)
    if key is None:
        return None
    for word in words:
        key = jax.random.fold_in(key, word)
    return key


def _path_word(part: PathPart) -> jax.Array:
    word = _validation.check_path_part(part)
    if isinstance(word, str):
        word = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return word if isinstance(word, jax.Array) else _validation.put_number(word, np.uint32)
