"""Continuous noise, version 1: uniform and normal deviates of a key and a shape.

Specification. The key is folded and reduced to two words as in `dropout_jax.masks`, but with
0x6E6F6973 ("nois"). Element `place` of a row (the last axis) has the two output words (a, b) of
Threefry-2x32-20 with the counter (row, place), where row is the linear index over the other axes in
C order; a scalar is row 0, place 0. With u(w) = (floor(w / 2^9) + 1/2) / 2^23, which float32 holds
exactly and which lies in [2^-24, 1 - 2^-24]:

- uniform: u(a);
- normal (Box and Muller, 1958): sqrt(-2 ln u(a)) cos(2 pi u(b)), computed in float32.

Words are the same everywhere; logarithm and cosine may differ by an ulp between backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from dropout_jax import masks

if TYPE_CHECKING:
    from jaxtyping import Array, Float32


def uniform(key, shape: tuple[int, ...]) -> Float32[Array, "..."]:
    """Deviates in (0, 1), symmetric about 1/2."""
    first, _ = masks.noise_words(key, shape)
    return _unit(first).reshape(shape)


def normal(key, shape: tuple[int, ...]) -> Float32[Array, "..."]:
    """Standard normal deviates, at most 5.8 from 0."""
    first, second = masks.noise_words(key, shape)
    radius = jnp.sqrt(-2 * jnp.log(_unit(first)))
    return (radius * jnp.cos(2 * jnp.pi * _unit(second))).reshape(shape)


def _unit(word):
    return ((word >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)
