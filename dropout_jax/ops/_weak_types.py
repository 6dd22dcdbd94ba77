"""Set the weak type of a result, so that training and evaluation return the same type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Shaped


def with_weak_type_of(like: jax.Array | jax.ShapeDtypeStruct, y: jax.Array) -> Shaped[Array, "..."]:
    """Return y, weakly typed exactly if `like` is.

    (A weak type is that of jnp.asarray(1.0), which takes the dtype of what it meets. No function of
    jax.numpy gives it to an array that has a dtype of its own, so this binds the primitive.)
    """
    if like.weak_type == y.weak_type:
        return y
    return lax.convert_element_type_p.bind(
        y, new_dtype=y.dtype, weak_type=like.weak_type, sharding=None
    )
