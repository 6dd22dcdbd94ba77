"""Rotary positions: queries and keys are rotated by angles that grow with their position.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021. As in Hugging
Face's Llama, element i of the first half of a head is rotated with element i of the second half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Integer


def rotary_cos_sin(
    positions: Integer[Array, "*batch time"], dim: int, theta: float, dtype: Any
) -> tuple[Float[Array, "*batch time half"], Float[Array, "*batch time half"]]:
    """The cosine and the sine of position * theta ** (-2 i / dim), i = 0 ... dim / 2 - 1.

    They are of this dtype, or float32 if it is narrower.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    frequencies = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    angles = positions[..., None].astype(wide) * jnp.asarray(frequencies, wide)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "batch time heads dim"],
    cos: Float[Array, "*batch time half"],
    sin: Float[Array, "*batch time half"],
) -> Float[Array, "batch time heads dim"]:
    """Rotate the pairs of elements, in the dtype of cos and sin.

    >>> x = jnp.ones((1, 2, 1, 2))
    >>> y = rotate(x, *rotary_cos_sin(jnp.arange(2), 2, 10_000.0, x.dtype))
    >>> [[round(float(number), 2) for number in row] for row in y[0, :, 0]]
    [[1.0, 1.0], [-0.3, 1.38]]
    """
    cos, sin = cos[..., None, :], sin[..., None, :]
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
