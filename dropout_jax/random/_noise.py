"""Continuous noise, version 1: uniform and normal deviates of a key and a shape.

Specification. The key is folded and reduced to two words as in `_masks.py`, but with 0x6E6F6973
("nois"). Element `column` of a row (the last axis) has the first output word, w, of
Threefry-2x32-20 with the counter (row, column), where row is the linear index over the other axes
in C order; a scalar is row 0, column 0. Let u = (floor(w / 2^9) + 1/2) / 2^23, which float32 holds
exactly and which lies in [2^-24, 1 - 2^-24]. Then:

- uniform: u;
- normal: sqrt(2) erfinv(2 u - 1), the normal quantile of u, computed in float32.

The words are the same on every backend. The inverse error function is the backend's, in float32
(XLA's on a CPU is within 5e-5 of the exact quantile).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from dropout_jax.random import _masks

if TYPE_CHECKING:
    from jaxtyping import Array, Float32, Key


def draw_uniform(key: Key[Array, ""], shape: tuple[int, ...]) -> Float32[Array, "..."]:
    """Draw deviates in (0, 1), symmetric about 1/2."""
    words = _masks.draw_noise_words(key, shape).reshape(shape)
    return ((words >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)


def draw_normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Float32[Array, "..."]:
    """Draw standard normal deviates, at most 5.3 from 0."""
    return jnp.float32(2.0**0.5) * lax.erf_inv(2 * draw_uniform(key, shape) - 1)
