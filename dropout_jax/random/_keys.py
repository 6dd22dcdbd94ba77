"""Keys by name: each place and each step derives its own key from one root."""

from __future__ import annotations

import hashlib

import jax

from dropout_jax import _validation


def fold(key: jax.Array | None, *path: str | int | jax.Array) -> jax.Array | None:
    """Derive a key by a path of names, so that adding a name changes no other key.

    Formula: `key = jax.random.fold_in(key, word)` for each part in turn. The word of an integer is
    the integer; the word of a string is the first four bytes, big-endian, of the SHA-256 of its
    UTF-8 form. Hence `fold(fold(key, "a"), 1) == fold(key, "a", 1)`.

    Args:
      key: one PRNG key, typed or raw, or None.
      *path: strings, and integers in [0, 2^32), traced or not (a layer's index in a scan).

    Returns:
      A typed key of the same implementation; None when `key` is None, so that evaluation
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
    words = [_word(part) for part in path]
    key = _validation.key(key)
    if key is None:
        return None
    for word in words:
        key = jax.random.fold_in(key, word)
    return key


def _word(part: str | int | jax.Array) -> int | jax.Array:
    part = _validation.path_part(part)
    if isinstance(part, str):
        return int.from_bytes(hashlib.sha256(part.encode()).digest()[:4], "big")
    return part
