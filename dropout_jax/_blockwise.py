"""Attention in blocks of queries, in plain JAX: no array of queries x keys is ever whole.

Each block of queries meets all the keys it may see in one product, with an ordinary softmax; the
backward pass keeps the output and the log-sum-exp of each row, and makes weights and mask again.
(An online softmax over blocks of keys, as flash attention has it, was slower on a CPU.) Blocks are
unrolled, so that causal ones end where their keys end; past 16 of them each becomes a loop. A few
(batch, head) pairs go together, and a loop goes over the groups. The groups are strided, so that
they are local where batch or heads are sharded over up to eight devices.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dropout_jax import masks
from dropout_jax._visibility import Hidden, Reach, visible

if TYPE_CHECKING:
    from jaxtyping import Array, Float

GROUP = 8  # (batch, key head) pairs at a time
ROWS = 128  # queries to a block
UNROLLED = 16  # blocks at most


class Plan(NamedTuple):
    """What is known when the program is traced."""

    scale: float
    reach: Reach
    heads_to_a_key_head: int
    batch_parts: tuple[int, int]  # (together, in turn)
    head_parts: tuple[int, int]


class Block(NamedTuple):
    """`turns` times `rows` queries from `start`, and the range of keys that they may see."""

    start: int
    rows: int
    turns: int
    low: int
    high: int


def plan(query, key, scale: float, reach: Reach) -> Plan:
    """Choose the groups."""
    batch, key_heads = key.shape[0], key.shape[2]
    together = math.gcd(batch, GROUP)
    heads_together = math.gcd(key_heads, GROUP // together)
    return Plan(
        scale,
        reach,
        query.shape[2] // key_heads,
        (together, batch // together),
        (heads_together, key_heads // heads_together),
    )


def blocks(reach: Reach, queries: int, keys: int) -> list[Block]:
    """Cut the queries into blocks; the first key of each is a multiple of 32."""
    rows = min(ROWS, queries)
    turns = -(-queries // (rows * UNROLLED))
    found = []
    for start in range(0, queries, rows * turns):
        here = min(rows * turns, queries - start)
        whole = here // rows
        for begin, size, count in (
            (start, rows, whole),
            (start + whole * rows, here - whole * rows, 1),
        ):
            if size * count:
                low, high = reach.keys_of(begin, begin + size * count - 1, keys)
                found.append(Block(begin, size, count, low // 32 * 32, high))
    return found


class Operands(NamedTuple):
    """The arrays of attention; the last three may be None.

    Inside a group the axes are (batch, key head, head of the key head, position, dim) for queries,
    without the third for keys and values, and like the queries' for bias and hidden.
    """

    query: Float[Array, "batch queries heads dim"]
    key: Float[Array, "batch keys key_heads dim"]
    value: Float[Array, "batch keys key_heads dim"]
    bias: Float[Array, "#batch #heads #queries #keys"] | None
    hidden: Hidden
    dropout: tuple[masks.Dice, Float[Array, ""]] | None  # and the inverse of the kept share


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(plan_: Plan, operands: Operands) -> Float[Array, "batch queries heads dim"]:
    """Attention with dropout; the result has the dtype of the value."""
    return _forward(plan_, operands)[0]


def _forward(plan_: Plan, operands: Operands):
    def one_group(_, index):
        return None, _group_forward(plan_, index, _group(plan_, operands, index))

    _, (out, log_sum) = _each_group(plan_, one_group, None)
    out = _ungroup(plan_, out)
    return out, (operands, out, log_sum)


def _backward(plan_: Plan, kept, d_out):
    operands, out, log_sum = kept

    def one_group(d_bias, index):
        group = _group(plan_, operands, index)
        grouped = [_group_heads(plan_, x, index) for x in (d_out, out)]
        *gradients, d_logits = _group_backward(plan_, index, group, *grouped, log_sum[index])
        if d_bias is not None:
            d_bias = _add_group(plan_, d_bias, index, d_logits)
        return d_bias, gradients

    d_bias = None if operands.bias is None else jnp.zeros(operands.bias.shape, jnp.float32)
    d_bias, gradients = _each_group(plan_, one_group, d_bias)
    d_query, d_key, d_value = (_ungroup(plan_, x) for x in gradients)
    if d_bias is not None:
        d_bias = d_bias.astype(operands.bias.dtype)
    return (Operands(d_query, d_key, d_value, d_bias, None, None),)


attend.defvjp(_forward, _backward)


def _group_forward(plan_: Plan, index, group: Operands):
    """The output and the log-sum-exp of every query of a group."""
    rows_out = []
    for block in blocks(plan_.reach, group.query.shape[3], group.key.shape[2]):

        def one_turn(_, start, block=block):
            return None, _block_forward(plan_, index, group, block, start)

        rows_out.append(_turns(block, one_turn, None)[1])
    out, log_sum = zip(*rows_out, strict=True)
    return jnp.concatenate(out, axis=3), jnp.concatenate(log_sum, axis=3)


def _block_forward(plan_: Plan, index, group: Operands, block: Block, start):
    logits = _logits(plan_, group, block, start)
    top = logits.max(axis=-1, keepdims=True)
    top = jnp.where(top == -jnp.inf, 0, top)  # a row that sees nothing
    weights = jnp.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True)
    weights, inverse = _drop(plan_, index, group, block, start, weights)
    value = group.value[:, :, block.low : block.high]
    out = _product("bkgts,bksh->bkgth", weights.astype(value.dtype), value)
    out = out * (inverse / jnp.where(total == 0, 1, total))
    log_sum = jnp.where(total == 0, jnp.inf, top + jnp.log(total))
    return out.astype(value.dtype), log_sum[..., 0]


def _group_backward(plan_: Plan, index, group: Operands, d_out, out, log_sum):
    """The gradients of a group's query, key, value and bias."""
    centre = (_wide(d_out) * _wide(out)).sum(axis=-1)  # the row sum of weight * its gradient
    rows = (d_out, centre, log_sum)
    totals = tuple(jnp.zeros(x.shape, log_sum.dtype) for x in (group.key, group.value))
    if group.bias is not None:
        totals += (jnp.zeros(group.bias.shape, log_sum.dtype),)
    d_query = []
    for block in blocks(plan_.reach, group.query.shape[3], group.key.shape[2]):

        def one_turn(totals, start, block=block):
            return _block_backward(plan_, index, group, block, start, rows, totals)

        totals, d_rows = _turns(block, one_turn, totals)
        d_query.append(d_rows)
    d_key, d_value, *d_bias = totals
    d_key, d_value = d_key.astype(group.key.dtype), d_value.astype(group.value.dtype)
    d_query = jnp.concatenate(d_query, axis=3).astype(group.query.dtype)
    return d_query, d_key[:, :, None], d_value[:, :, None], *(d_bias or (None,))


def _block_backward(plan_: Plan, index, group: Operands, block: Block, start, rows, totals):
    query, d_out, centre, log_sum = (_rows_of(x, start, block.rows) for x in (group.query, *rows))
    key, value = (x[:, :, block.low : block.high] for x in (group.key, group.value))
    weights = jnp.exp(_logits(plan_, group, block, start) - log_sum[..., None])
    dropped, inverse, d_dropped = _drop_twice(
        plan_, index, group, block, start, weights, _product("bkgth,bksh->bkgts", d_out, value)
    )
    d_logits = weights * (d_dropped * inverse - centre[..., None])
    narrow = (d_logits * plan_.scale).astype(key.dtype)
    d_value = _product("bkgts,bkgth->bksh", dropped.astype(value.dtype), d_out) * inverse
    d_key = _product("bkgts,bkgth->bksh", narrow, query)
    d_totals = [(d_key, (0, 0, block.low, 0)), (d_value, (0, 0, block.low, 0))]
    if group.bias is not None:
        like = _bias_of(group.bias, block, start)
        place = [0 if size == 1 else at for size, at in zip(group.bias.shape[3:], (start, block.low), strict=True)]
        d_totals.append((_sum_to(d_logits, like.shape), (0, 0, 0, *place)))
    totals = tuple(_add_at(x, part, at) for x, (part, at) in zip(totals, d_totals, strict=True))
    return totals, _product("bkgts,bksh->bkgth", narrow, key)
