"""Attention in blocks of queries, in plain JAX: no array of queries x keys is ever whole.

Each block of queries meets all the keys it may see in one product, with an ordinary softmax; the
backward pass keeps the output and the log-sum-exp of each row, and makes weights and mask again.
(An online softmax over blocks of keys, as flash attention has it, was slower on a CPU.) Blocks are
unrolled, so that causal ones end where their keys end; past 16 of them, each becomes a loop over
several, which meet the keys of all of them. A few (batch, key head) pairs go together, and a loop
goes over the groups. On a mesh (jax.set_mesh) a group is strided over the batch and the heads, so
that each device has its part of every group.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from dropout_jax import ops, random
from dropout_jax.attention._inputs import Inputs, Reach, visible

if TYPE_CHECKING:
    from jaxtyping import Array, Float

UNROLLED = 16  # blocks at most
AT_ONCE = 2**21  # weights of a group, up to which their mask (256 kB) is made in one go


class Plan(NamedTuple):
    """What is known when the program is traced. The parts are (together, in turn)."""

    scale: float
    reach: Reach
    batch_parts: tuple[int, int]
    head_parts: tuple[int, int]  # of the key heads


class Block(NamedTuple):
    """`turns` times `rows` queries from `start`, and the range of keys that they may see."""

    start: int
    rows: int
    turns: int
    low: int
    high: int


# The dice of the mask, the inverse of the share it keeps, and the first row of the batch; None at
# evaluation.
Dropout = tuple[random.Dice, jax.Array, jax.Array] | None


def attention(inputs: Inputs, scale: float, reach: Reach, dropout) -> Float[Array, "..."]:
    """Attention with dropout (key, rate, start) or None; the result has the shape of the query."""
    if dropout is not None:
        key, rate, start = dropout
        inverse = ops.inverse_share(rate, ops.compute_dtype(inputs.query))
        dropout = random.dice(key, rate), inverse, jnp.uint32(0) if start is None else start
    return _attend(plan(inputs, scale, reach), inputs, dropout)


def plan(inputs: Inputs, scale: float, reach: Reach) -> Plan:
    """Choose the groups: pairs of about 2048 queries together, or a part for every device."""
    batch, queries = inputs.query.shape[:2]
    key_heads = inputs.key.shape[2]
    mesh = jax.sharding.get_abstract_mesh()
    shared = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    devices = math.prod(size for size, kind in shared if kind != AxisType.Manual)
    group = min(8, max(1, 2048 // queries))
    batch_together = math.gcd(batch, devices if devices > 1 else group)
    heads_together = math.gcd(key_heads, devices if devices > 1 else group // batch_together)
    batch_parts = batch_together, batch // batch_together
    return Plan(scale, reach, batch_parts, (heads_together, key_heads // heads_together))


def blocks(reach: Reach, queries: int, keys: int) -> list[Block]:
    """Cut the queries into blocks; the first key of each is a multiple of 32."""
    rows = min(256, max(64, queries // 8))
    turns = -(-queries // (rows * UNROLLED))
    whole = queries // rows * rows
    starts = range(0, whole, rows * turns)
    cuts = [(start, rows, min(turns, (whole - start) // rows)) for start in starts]
    cuts += [(whole, queries - whole, 1)] * (whole < queries)
    found = []
    for start, size, count in cuts:
        low, high = reach.keys_of(start, start + size * count - 1, keys)
        low = low if low == high else low // random.WORD * random.WORD
        found.append(Block(start, size, count, low, high))
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan_: Plan, inputs: Inputs, dropout: Dropout):
    return _forward(plan_, inputs, dropout)[0]


def _forward(plan_: Plan, inputs: Inputs, dropout: Dropout):
    def one_group(_, index):
        group = _group(plan_, inputs, index)
        return None, _group_forward(plan_, group, _drop(plan_, index, group, dropout))

    _, (out, log_sum) = _each_group(plan_, one_group, None)
    out = _ungroup(plan_, out)
    return out, (inputs, dropout, out, log_sum)


def _backward(plan_: Plan, kept, d_out):
    inputs, dropout, out, log_sum = kept

    def one_group(d_bias, index):
        group = _group(plan_, inputs, index)
        drop = _drop(plan_, index, group, dropout)
        d_rows, rows = (_group_positions(plan_, x, index) for x in (d_out, out))
        *gradients, part = _group_backward(plan_, group, drop, d_rows, rows, log_sum[index])
        return d_bias if d_bias is None else _put(plan_, d_bias, part, index), gradients

    bias = inputs.bias
    d_bias = None if bias is None else _zeros_of(_split(plan_, bias), log_sum.dtype)
    d_bias, gradients = _each_group(plan_, one_group, d_bias)
    if bias is not None:
        d_bias = d_bias.reshape(bias.shape).astype(bias.dtype)
    return Inputs._make([*(_ungroup(plan_, x) for x in gradients), d_bias, None]), None


_attend.defvjp(_forward, _backward)


def _group_forward(plan_: Plan, group: Inputs, drop):
    """The output and the log-sum-exp of every query of a group."""
    found = []
    for block in blocks(plan_.reach, group.query.shape[3], group.key.shape[2]):

        def one_turn(_, start, block=block):
            return None, _block_forward(plan_, group, drop, block, start)

        found.append(_turns(block, one_turn, None)[1])
    return [jnp.concatenate(parts, axis=3) for parts in zip(*found, strict=True)]


def _block_forward(plan_: Plan, group: Inputs, drop, block: Block, start):
    if block.low == block.high:  # it sees nothing
        out = jnp.zeros_like(_rows_of(group.query, start, block.rows))
        return out, jnp.full(out.shape[:-1], jnp.inf, ops.compute_dtype(out))
    logits = _logits(plan_, group, block, start)
    top = logits.max(axis=-1, keepdims=True)
    top = jnp.where(top == -jnp.inf, 0, top)  # a row that sees nothing
    weights = jnp.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True)
    dropped, inverse = drop(block, start)
    value = _keys_of(group.value, block)
    out = _product("bkgts,bksd->bkgtd", dropped(weights).astype(value.dtype), value)
    out = out * (inverse / jnp.where(total == 0, 1, total))
    log_sum = jnp.where(total == 0, jnp.inf, top + jnp.log(jnp.where(total == 0, 1, total)))
    return out.astype(value.dtype), log_sum[..., 0]


def _group_backward(plan_: Plan, group: Inputs, drop, d_out, out, log_sum):
    """The gradients of a group's query, key, value and bias."""
    wide = log_sum.dtype
    centre = (d_out.astype(wide) * out.astype(wide)).sum(axis=-1)
    rows = (d_out, centre, log_sum)
    sources = [x for x in (group.key, group.value, group.bias) if x is not None]
    totals = [_zeros_of(x, wide) for x in sources]
    d_query = []
    for block in blocks(plan_.reach, group.query.shape[3], group.key.shape[2]):

        def one_turn(totals, start, block=block):
            return _block_backward(plan_, group, drop, block, start, rows, totals)

        totals, d_rows = _turns(block, one_turn, totals)
        d_query.append(d_rows)
    d_key, d_value, d_bias = [*totals, None][:3]
    d_query = jnp.concatenate(d_query, axis=3)
    gradients = (d_query, d_key[:, :, None], d_value[:, :, None])
    return *(x.astype(group.query.dtype) for x in gradients), d_bias


def _block_backward(plan_: Plan, group: Inputs, drop, block: Block, start, rows, totals):
    """Add a block's part to the totals of key, value and bias; and its own queries' gradient."""
    query, d_out, centre, log_sum = (_rows_of(x, start, block.rows) for x in (group.query, *rows))
    if block.low == block.high:
        return totals, jnp.zeros(query.shape, log_sum.dtype)
    key, value = _keys_of(group.key, block), _keys_of(group.value, block)
    weights = jnp.exp(_logits(plan_, group, block, start) - log_sum[..., None])
    dropped, inverse = drop(block, start)
    d_weights = dropped(_product("bkgtd,bksd->bkgts", d_out, value)) * inverse
    d_logits = weights * (d_weights - centre[..., None])
    narrow, kept = d_logits.astype(key.dtype), dropped(weights).astype(value.dtype)
    place = (0, 0, block.low, 0)
    parts = [
        (_product("bkgts,bkgtd->bksd", narrow, query) * plan_.scale, place),
        (_product("bkgts,bkgtd->bksd", kept, d_out) * inverse, place),
    ]
    if group.bias is not None:
        parts.append(_bias_part(group.bias, d_logits, block, start))
    totals = [_add_at(total, *part) for total, part in zip(totals, parts, strict=True)]
    return totals, _product("bkgts,bksd->bkgtd", narrow, key) * plan_.scale


def _logits(plan_: Plan, group: Inputs, block: Block, start):
    """The scaled and biased products of a block, -inf where a key is not to be seen."""
    query = _rows_of(group.query, start, block.rows)
    logits = _product("bkgtd,bksd->bkgts", query, _keys_of(group.key, block)) * plan_.scale
    if group.bias is not None:
        logits = logits + _tile_of(group.bias, block, start).astype(logits.dtype)
    mask = group.hidden.mask
    hidden = group.hidden._replace(mask=None if mask is None else _tile_of(mask, block, start))
    rows = start + jnp.arange(block.rows, dtype=jnp.int32)
    keys = jnp.arange(block.low, block.high, dtype=jnp.int32)
    seen = visible(plan_.reach, hidden, rows, keys)
    return logits if seen is None else jnp.where(seen, logits, -jnp.inf)


def _drop(plan_: Plan, index, group: Inputs, dropout: Dropout) -> Callable:
    """A function of a block that gives what drops its weights, and what is left to multiply by."""
    if dropout is None:
        return lambda block, start: (lambda weights: weights, 1)
    dice, inverse, first_row = dropout
    batch, key_heads, heads, queries, _ = group.query.shape
    keys = group.key.shape[2]
    batch_turn, head_turn = (turn.astype(jnp.uint32) for turn in _turn(plan_, index))
    all_heads = math.prod(plan_.head_parts) * heads

    def words_of(start, rows: int, low: int, high: int):
        shape = (batch, key_heads, heads, rows)
        b, k, h, t = (lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(4))
        b = b * jnp.uint32(plan_.batch_parts[1]) + batch_turn + first_row
        k = k * jnp.uint32(plan_.head_parts[1]) + head_turn
        head = b * jnp.uint32(all_heads) + k * jnp.uint32(heads) + h
        row = head * jnp.uint32(queries) + t + jnp.uint32(start)
        return random.row_words(dice, row, keys, low, high - low)

    few = batch * key_heads * heads * queries * keys <= AT_ONCE
    all_words = words_of(0, queries, 0, keys) if few else None

    def of_block(block: Block, start):
        if all_words is None:
            words = words_of(start, block.rows, block.low, block.high)
        else:
            words = _rows_of(all_words, start, block.rows)[..., block.low // random.WORD :]
        keep = random.unpack_rows(words, block.high - block.low)
        return lambda weights: jnp.where(keep, weights, 0), inverse

    return of_block


def _product(form: str, a, b):
    """A product whose sums have the precision that a softmax needs."""
    return jnp.einsum(form, a, b, preferred_element_type=ops.compute_dtype(a))


def _keys_of(x, block: Block):
    return x[:, :, block.low : block.high]


def _rows_of(x, start, rows: int):
    return lax.dynamic_slice_in_dim(x, start, rows, axis=3)


def _tile_of(x, block: Block, start):
    """The part of a bias or a mask that a block meets; axes of length 1 stay."""
    queries, keys = x.shape[3:]
    x = x if queries == 1 else _rows_of(x, start, block.rows)
    return x if keys == 1 else x[..., block.low : block.high]


def _bias_part(bias, d_logits, block: Block, start):
    """The bias's gradient from a block, summed to the bias's axes, and its place."""
    shared = tuple(axis for axis in range(5) if bias.shape[axis] == 1)
    queries, keys = bias.shape[3:]
    place = (0, 0, 0, 0 if queries == 1 else start, 0 if keys == 1 else block.low)
    return d_logits.sum(axis=shared, keepdims=True), place


def _zeros_of(x, dtype):
    """Zeros of the shape of x that, under shard_map, vary over the devices as x does."""
    return jnp.where(False, x, jnp.zeros_like(x)).astype(dtype)


def _add_at(total, part, place):
    there = lax.dynamic_slice(total, place, part.shape)
    return lax.dynamic_update_slice(total, there + part, place)


def _turns(block: Block, fn: Callable, carry) -> Any:
    """carry, rows = fn(carry, start) for each turn of a block; the rows one after the other."""
    if block.turns == 1:
        return fn(carry, block.start)
    starts = block.start + block.rows * jnp.arange(block.turns, dtype=jnp.int32)
    carry, rows = lax.scan(fn, carry, starts)
    return carry, jax.tree.map(_join_turns, rows)


def _join_turns(x):
    x = jnp.moveaxis(x, 0, 3)  # batch, key head, head, turn, row, ...
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])


def _each_group(plan_: Plan, fn: Callable, carry) -> Any:
    """carry, result = fn(carry, index) for each group; the results stacked."""
    count = plan_.batch_parts[1] * plan_.head_parts[1]
    return lax.scan(fn, carry, jnp.arange(count, dtype=jnp.int32))


def _turn(plan_: Plan, index):
    """Which turn of the batch, and of the heads."""
    return index // plan_.head_parts[1], index % plan_.head_parts[1]


def _group(plan_: Plan, inputs: Inputs, index) -> Inputs:
    """The arrays of a group."""
    query, key, value = (_group_positions(plan_, x, index) for x in inputs[:3])
    tiles = jax.tree.map(lambda x: _pick(plan_, _split(plan_, x), index), inputs[3:])
    return Inputs._make([query, key[:, :, 0], value[:, :, 0], *tiles])


def _group_positions(plan_: Plan, x, index):
    """(batch, position, head, dim) to a group's (batch, key head, head, position, dim)."""
    x = x.reshape(*plan_.batch_parts, x.shape[1], *plan_.head_parts, -1, x.shape[-1])
    batch_turn, head_turn = _turn(plan_, index)
    x = lax.dynamic_index_in_dim(x, batch_turn, 1, keepdims=False)
    x = lax.dynamic_index_in_dim(x, head_turn, 3, keepdims=False)
    return x.transpose(0, 2, 3, 1, 4)


def _ungroup(plan_: Plan, x):
    """Stacked groups to (batch, position, head, dim)."""
    turns = (plan_.batch_parts[1], plan_.head_parts[1])
    x = x.reshape(*turns, *x.shape[1:])  # turn, turn, batch, key head, head, position, dim
    x = x.transpose(2, 0, 5, 3, 1, 4, 6)
    return x.reshape(math.prod(x.shape[:2]), x.shape[2], math.prod(x.shape[3:6]), x.shape[6])


def _split(plan_: Plan, x):
    """A bias's or a mask's batch and head axes in parts; those of length 1 stay."""
    batch = (1, 1) if x.shape[0] == 1 else plan_.batch_parts
    heads = (1, 1, 1) if x.shape[1] == 1 else (*plan_.head_parts, -1)
    return x.reshape(*batch, *heads, *x.shape[2:])


def _pick(plan_: Plan, x, index):
    """A group's part of split x."""
    part = lax.dynamic_slice(x, _place(plan_, x, index), _picked(x))
    return part.reshape(x.shape[0], x.shape[2], *x.shape[4:])


def _put(plan_: Plan, x, part, index):
    """Add a group's part to split x."""
    return _add_at(x, part.reshape(_picked(x)), _place(plan_, x, index))


def _picked(x):
    return (x.shape[0], 1, x.shape[2], 1, *x.shape[4:])


def _place(plan_: Plan, x, index):
    batch_turn, head_turn = _turn(plan_, index)
    zero = jnp.zeros_like(index)
    return (
        *(zero, zero if x.shape[1] == 1 else batch_turn),
        *(zero, zero if x.shape[3] == 1 else head_turn),
        *(zero, zero, zero),
    )
