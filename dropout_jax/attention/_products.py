"""Products of two arrays whose sums have the precision that a softmax needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from dropout_jax import ops

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def multiply(
    subscripts: str, a: Float[Array, "..."], b: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Compute an einsum in float32 (float64 for float64)."""
    wide = ops.compute_dtype(a)
    if a.dtype == wide:
        return jnp.einsum(subscripts, a, b, preferred_element_type=wide)
    a, b = _keep_layout(a), _keep_layout(b)
    return _keep_layout(jnp.einsum(subscripts, a, b, preferred_element_type=wide))


def _keep_layout(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Keep transposes of x out of the product, and of its gradient out of the product's.

    XLA:CPU of jax 0.10 cannot run a product of transposed bfloat16 arrays into float32: it ends in
    "Unsupported element type for DotThunk".
    """
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)
