"""Attention by a kernel, which the platform chooses that the program is lowered for.

That is Triton for a GPU (`_triton.py`) and Mosaic for a TPU (`_mosaic_tpu.py`); a CPU interprets
the one for GPUs. A kernel has no forward mode and no second derivatives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from dropout_jax import ops, random
from dropout_jax.attention import _mosaic_tpu, _partition, _triton
from dropout_jax.attention._inputs import (
    Dropout,
    Inputs,
    StaticMask,
    compute_head_index,
    vary_alike,
)
from dropout_jax.attention._kernel_inputs import Operands, Plan
from dropout_jax.attention._partition import PairAxes

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt32


def attend(
    inputs: Inputs,
    scale: float,
    static_mask: StaticMask,
    dropout: Dropout | None,
    axes: PairAxes | None = None,
) -> tuple[Float[Array, "batch queries heads dim"], None]:
    """Compute attention; `dropout` of None is evaluation. `axes` are those that a type tells.

    There is no log-sum-exp, as it has no gradient.
    """
    plan = Plan(scale, static_mask, dropout is not None, interpret=False, axes=axes)
    words, keep_scale = _pack_dropout(dropout, ops.compute_dtype(inputs.query))
    heads = _number_heads(inputs, dropout)
    return _attend(plan, vary_alike(Operands(inputs, heads, words, keep_scale))), None


def _pack_dropout(
    dropout: Dropout | None, wide: DTypeLike
) -> tuple[UInt32[Array, "3"], Float[Array, "1"]]:
    """Return the seed and the threshold as one array, and the scale of kept weights as another."""
    if dropout is None:
        return jnp.zeros(3, jnp.uint32), jnp.ones(1, wide)
    params = random.mask_params(dropout.key, dropout.rate)
    keep_scale = ops.compute_keep_scale(dropout.rate, wide)
    return jnp.stack([*params.seed, params.threshold]), keep_scale[None]


def _number_heads(inputs: Inputs, dropout: Dropout | None) -> UInt32[Array, "batch heads"]:
    """Return the index of each head over all heads of the mask."""
    shape = inputs.query.shape[0], inputs.query.shape[2]
    row, head = (lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
    if dropout is None:
        return compute_head_index(row, head, shape[1], ())
    row = row if dropout.row_offset is None else row + dropout.row_offset
    return compute_head_index(row, head, shape[1], dropout.broadcast_dims)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, operands: Operands) -> Float[Array, "batch queries heads dim"]:
    return _forward(plan, operands)[0]


def _forward(plan: Plan, operands: Operands) -> tuple[Float[Array, "..."], Any]:
    out, log_sum = _run("forward", plan, operands)
    return out, (operands, out, log_sum)


def _backward(plan: Plan, residuals: Any, d_out: Float[Array, "..."]) -> tuple[Operands]:
    operands, out, log_sum = residuals
    gradients = _run("backward", plan, operands, out, log_sum, d_out)
    return (Operands._make([Inputs._make([*gradients, None]), None, None, None]),)


_attend.defvjp(_forward, _backward)


def _run(name: str, plan: Plan, *arrays: Any) -> Any:
    """Run "forward" or "backward", on every device on its part of the batch and the heads."""
    on_gpu = functools.partial(getattr(_triton, name), plan)
    interpreted = functools.partial(getattr(_triton, name), plan._replace(interpret=True))
    on_tpu = functools.partial(_run_wide, getattr(_mosaic_tpu, name), plan)
    by_platform = {
        "cpu": (interpreted, _partition.partition_by_compiler),
        "cuda": (on_gpu, _partition.partition_by_compiler),
        "tpu": (on_tpu, _partition.partition_by_names),
    }

    def split(run, partition):
        if plan.axes is not None:
            return lambda *arrays: _partition.partition_by_type(run, name, plan.axes, arrays)
        return lambda *arrays: partition(run, name, arrays)

    branches = {platform: split(*each) for platform, each in by_platform.items()}
    return lax.platform_dependent(*arrays, **branches)


def _run_wide(run: Callable, plan: Plan, operands: Operands, *arrays: Any) -> Any:
    """Run on float16 arrays as on float32 ones, as a TPU cannot load float16."""
    given = operands.inputs
    operands, arrays = jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.dtype == jnp.float16 else x, (operands, arrays)
    )
    results = run(plan, operands, *arrays)
    narrow = given.query.dtype
    if not arrays:
        return results[0].astype(narrow), results[1]
    return jax.tree.map(lambda d, x: d.astype(x.dtype), tuple(results), tuple(given[:4]))
