"""What a kernel of attention gets: the same for a GPU and for a TPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from dropout_jax.attention._inputs import Inputs, StaticMask

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt32


class Plan(NamedTuple):
    """What is known when the program is traced."""

    scale: float
    static_mask: StaticMask
    drops: bool
    interpret: Any  # False, True, or pltpu.InterpretParams(...)
    axes: Any = None  # the PairAxes of a mesh with Explicit axes


class Operands(NamedTuple):
    """The arrays. Those of `inputs` may be a part of a larger batch and its heads."""

    inputs: Inputs
    heads: UInt32[Array, "batch heads"]  # the index of each head among all heads of the mask
    words: UInt32[Array, "3"]  # the seed of the mask, and T / 2^8
    keep_scale: Float[Array, "1"]  # 1 / (1 - rate), in the dtype of the sums


def pad_to_multiple(x: Any, axis: int, multiple: int, value: float = 0) -> Any:
    """Pad the end of an axis to whole blocks."""
    more = -x.shape[axis] % multiple
    if not more:
        return x
    widths = [(0, more if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=jnp.asarray(value, x.dtype))
