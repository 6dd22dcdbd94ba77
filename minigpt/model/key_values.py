"""The keys and values of one layer of the model, kept so that a new token costs one position."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Integer


class KeyValues(NamedTuple):
    """The keys and values of one layer; the positions come before the vector, for plain products.

    There may be fewer heads than those of the queries: each serves a group of these.

    A position holds anything until it is written; `attend` sees only the positions up to a row's
    own.
    """

    keys: Float[Array, "batch heads block dim"]
    values: Float[Array, "batch heads block dim"]

    @staticmethod
    def with_room(
        keys: Float[Array, "batch time heads dim"],
        values: Float[Array, "batch time heads dim"],
        block_size: int,
    ) -> KeyValues:
        """The keys and values of positions 0, 1, ..., with room for block_size positions."""
        padding = (0, 0), (0, 0), (0, block_size - keys.shape[1]), (0, 0)
        return KeyValues(*(jnp.pad(a.swapaxes(1, 2), padding) for a in (keys, values)))

    def write(
        self,
        positions: Integer[Array, " batch"],
        keys: Float[Array, "batch 1 heads dim"],
        values: Float[Array, "batch 1 heads dim"],
    ) -> KeyValues:
        """Write the keys and values of one position per row."""
        rows = jnp.arange(len(positions))
        return KeyValues(
            self.keys.at[rows, :, positions].set(keys[:, 0]),
            self.values.at[rows, :, positions].set(values[:, 0]),
        )

    def attend(
        self, positions: Integer[Array, " batch"], query: Float[Array, "batch 1 query_heads dim"]
    ) -> Float[Array, "batch 1 query_heads dim"]:
        """Attend from one position per row to itself and the positions before it."""
        scale, dtype = 1 / math.sqrt(query.shape[-1]), self.values.dtype
        wide = jnp.promote_types(dtype, "float32")
        batch, heads, block, dim = self.keys.shape
        grouped = query.reshape(batch, heads, -1, dim)
        logits = jnp.einsum("bhgd,bhtd->bhgt", grouped, self.keys, preferred_element_type=wide)
        is_visible = jnp.arange(block) <= positions[:, None, None, None]
        logits = jnp.where(is_visible, logits * scale, -jnp.inf)
        weights = jax.nn.softmax(logits).astype(dtype)
        context = jnp.einsum("bhgt,bhtd->bhgd", weights, self.values, preferred_element_type=wide)
        return context.astype(dtype).reshape(query.shape)
