"""Attention in blocks of queries, in plain JAX: no array of queries x keys is ever whole.

Each block of queries meets all the keys that it may see in one product, with an ordinary softmax.
(An online softmax over chunks of keys, as in flash attention, is slower on a CPU.) The derivative
is a linear function of the tangents that computes the weights and the mask again from the output
and the log-sum-exp of each row. JAX transposes it for the backward pass, so that forward mode,
second derivatives and jax.shard_map need nothing more.

Groups of (batch, key head) pairs, which `_groups.py` forms, are a loop, and so are the blocks of a
segment: a few segments, each with its own range of keys, make a causal mask cost about half.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from dropout_jax import ops, random
from dropout_jax.attention import _groups
from dropout_jax.attention._groups import Plan
from dropout_jax.attention._inputs import (
    Dropout,
    Inputs,
    StaticMask,
    compute_head_index,
    compute_visibility,
    vary_alike,
)
from dropout_jax.attention._products import multiply
from dropout_jax.random import WORD

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int32, UInt32

# Each is a program of its own, and works on keys that some of its queries do not see.
MAX_SEGMENTS = 4
# Draw the mask of a group at once up to this many weights (2 MB of mask): less to compile.
MAX_WEIGHTS_AT_ONCE = 2**24
QUERIES, KEYS = 3, 4  # the axes of positions in (batch, key heads, heads, queries, keys)


class Segment(NamedTuple):
    """`turns` blocks of `rows` queries from `first_row`, and the range of keys that they may see.

    Rows after the last query are padding.
    """

    first_row: int
    rows: int
    turns: int
    key_low: int
    key_high: int


class DropoutParams(NamedTuple):
    """The parameters of the mask, the scale of kept weights, and the first row of the batch."""

    mask: random.MaskParams
    keep_scale: Float[Array, ""]
    row_offset: UInt32[Array, ""]


class Tangents(NamedTuple):
    """The tangents of the inputs; None is zero."""

    query: Float[Array, "..."] | None
    key: Float[Array, "..."] | None
    value: Float[Array, "..."] | None
    bias: Float[Array, "..."] | None


class Operands(NamedTuple):
    """The inputs, or the part of them that a loop has reached, with what the derivative needs.

    All arrays have the axes (batch, key heads, heads, positions, ...). The output and the
    log-sum-exp of the rows, and the tangents, are None in the forward pass.
    """

    inputs: Inputs
    out: Float[Array, "batch key_heads heads queries dim"] | None = None
    log_sum: Float[Array, "batch key_heads heads queries"] | None = None
    tangents: Tangents = Tangents(None, None, None, None)


def attend(
    inputs: Inputs, scale: float, static_mask: StaticMask, dropout: Dropout | None
) -> tuple[Float[Array, "batch queries heads dim"], Float[Array, "batch queries heads"]]:
    """Compute attention and the log-sum-exp of its logits; `dropout` of None is evaluation."""
    params, plan = None, _groups.choose_plan(inputs, scale, static_mask)
    if dropout is not None:
        keep_scale = ops.compute_keep_scale(dropout.rate, ops.compute_dtype(inputs.query))
        row_offset = jnp.uint32(0) if dropout.row_offset is None else dropout.row_offset
        mask = random.mask_params(dropout.key, dropout.rate)
        params = DropoutParams(mask, keep_scale, row_offset)
        plan = plan._replace(broadcast_dims=dropout.broadcast_dims)
    inputs, params = vary_alike((inputs, params))
    out, log_sum = _attend(plan, inputs, params)
    log_sum = log_sum[..., 0]
    return out, jnp.where(log_sum == jnp.inf, -jnp.inf, log_sum)


def split_queries(static_mask: StaticMask, queries: int, keys: int) -> list[Segment]:
    """Split the queries into segments; their first rows and keys are multiples of 32."""
    is_one_segment = static_mask == StaticMask(False, None)
    rows = _choose_rows(queries)
    blocks = -(-queries // rows)
    turns = blocks if is_one_segment else -(-blocks // MAX_SEGMENTS)
    segments = []
    for block in range(0, blocks, turns):
        first, count = block * rows, min(turns, blocks - block)
        low, high = static_mask.key_range(first, min(queries, first + rows * count) - 1, keys)
        low = low if low == high else low // WORD * WORD
        segments.append(Segment(first, rows, count, low, high))
    return segments


def _choose_rows(queries: int) -> int:
    """Choose the rows of a block: a multiple of 32 of which whole blocks have few to spare."""
    most = min(_groups.MAX_ROWS, max(64, queries // (2 if queries <= 256 else 4)))
    blocks = -(-queries // most)
    return -(-queries // (blocks * WORD)) * WORD


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(
    plan: Plan, inputs: Inputs, dropout: DropoutParams | None
) -> tuple[Float[Array, "batch queries heads dim"], Float[Array, "batch queries heads 1"]]:
    """Compute the output and the log-sum-exp of every query (inf where it sees no key)."""
    return _map_blocks(plan, _attend_block, Operands(inputs), dropout)


def _differentiate(
    plan: Plan, primals: tuple[Inputs, DropoutParams | None], tangents: tuple
) -> tuple[tuple, tuple]:
    inputs, dropout = primals
    out, log_sum = _attend(plan, inputs, dropout)
    given = (None if isinstance(x, SymbolicZero) else x for x in tangents[0][:4])

    @jax.checkpoint  # keeps its arguments for the backward pass, and nothing else
    def push_forward(given, inputs, out, log_sum, dropout):
        # Wide, so that the gradients of key, value and bias are summed over the blocks so.
        tangents = Tangents._make(jax.tree.map(ops.widen, given))
        operands = Operands(inputs, out, log_sum, tangents)
        return _map_blocks(plan, _push_forward_block, operands, dropout)

    return (out, log_sum), push_forward(tuple(given), inputs, out, log_sum, dropout)


_attend.defjvp(_differentiate, symbolic_zeros=True)


def _map_blocks(
    plan: Plan, fn: Callable, operands: Operands, dropout: DropoutParams | None
) -> tuple[Float[Array, "batch queries heads dim"], Float[Array, "batch queries heads 1"]]:
    """Return the results of fn(plan, segment, block, drop, first_row) of all blocks, merged."""
    inputs, tangents = operands.inputs, operands.tangents
    positions = (inputs[:3], operands.out, operands.log_sum, tangents[:3])
    tiles = (inputs[3:], tangents.bias)
    segments = split_queries(plan.static_mask, plan.queries, plan.keys)

    def call(turns, positions, tiles):
        (arrays, out, log_sum, t_arrays), (rest, t_bias) = positions, tiles
        inputs, tangents = Inputs._make([*arrays, *rest]), Tangents._make([*t_arrays, t_bias])
        group = Operands(inputs, out, log_sum, tangents)
        group = _pad_queries(group, segments[-1].first_row + segments[-1].rows * segments[-1].turns)
        drop = _build_drop(plan, turns, group.inputs, dropout)
        parts = [_map_segment(plan, fn, each, group, drop) for each in segments]
        return tuple(
            jnp.concatenate(blocks, axis=QUERIES)[:, :, :, : plan.queries]
            for blocks in zip(*parts, strict=True)
        )

    return _groups.map_groups(plan, call, positions, tiles)


def _pad_queries(group: Operands, queries: int) -> Operands:
    """Pad the queries of a group with zeros to whole blocks; axes of length 1 of tiles stay."""

    def pad(x):
        return _groups.pad_axis(x, QUERIES, queries - x.shape[QUERIES])

    def pad_tile(x):
        return x if x.shape[QUERIES] == 1 else pad(x)

    (query, key, value, *tiles), out, log_sum, tangents = group
    t_query, t_bias = jax.tree.map(pad, tangents.query), jax.tree.map(pad_tile, tangents.bias)
    inputs = Inputs(pad(query), key, value, *jax.tree.map(pad_tile, tiles))
    out, log_sum = jax.tree.map(pad, (out, log_sum))
    return Operands(inputs, out, log_sum, tangents._replace(query=t_query, bias=t_bias))


def _map_segment(
    plan: Plan, fn: Callable, segment: Segment, group: Operands, drop: Callable
) -> tuple[
    Float[Array, "batch key_heads heads queries dim"],
    Float[Array, "batch key_heads heads queries 1"],
]:
    """Return the results of the blocks of a segment, joined."""
    group = _slice_segment(segment, group)
    rows_of = group._replace(
        inputs=group.inputs._replace(key=None, value=None),
        tangents=group.tangents._replace(key=None, value=None),
    )
    (key, value), (t_key, t_value) = group.inputs[1:3], group.tangents[1:3]

    def call(turn, part):
        block = part._replace(
            inputs=part.inputs._replace(key=key, value=value),
            tangents=part.tangents._replace(key=t_key, value=t_value),
        )
        return fn(plan, segment, block, drop, segment.first_row + turn * segment.rows)

    parts = _groups.split_axis(rows_of, QUERIES, segment.rows)
    results = _groups.map_parts(call, segment.turns, parts)
    return jax.tree.map(_join_blocks, results)


def _slice_segment(segment: Segment, group: Operands) -> Operands:
    """Slice the queries of a segment and the keys that they see; axes of length 1 stay."""
    first, last = segment.first_row, segment.first_row + segment.rows * segment.turns
    low, high = segment.key_low, segment.key_high

    def slice_rows(x):
        return x if x.shape[QUERIES] == 1 else x[:, :, :, first:last]

    def slice_keys(x):
        return x[:, :, :, low:high]

    def slice_tile(x):
        return slice_rows(x if x.shape[KEYS] == 1 else x[..., low:high])

    (query, key, value, *tiles), (t_query, t_key, t_value, t_bias) = group.inputs, group.tangents
    slices = (
        (slice_rows, (query, group.out, group.log_sum, t_query)),
        (slice_keys, (key, value, t_key, t_value)),
        (slice_tile, (tiles, t_bias)),
    )
    (query, out, log_sum, t_query), (key, value, t_key, t_value), (tiles, t_bias) = (
        jax.tree.map(fn, arrays) for fn, arrays in slices
    )
    tangents = Tangents(t_query, t_key, t_value, t_bias)
    return Operands(Inputs(query, key, value, *tiles), out, log_sum, tangents)


def _join_blocks(
    x: Float[Array, "blocks batch key_heads heads rows dim"],
) -> Float[Array, "batch key_heads heads queries dim"]:
    x = jnp.moveaxis(x, 0, QUERIES)
    return x.reshape(*x.shape[:3], -1, x.shape[-1])


def _attend_block(
    plan: Plan, segment: Segment, block: Operands, drop: Callable, row: Int32[Array, ""]
) -> tuple[
    Float[Array, "batch key_heads heads rows dim"], Float[Array, "batch key_heads heads rows 1"]
]:
    """Compute the output and the log-sum-exp of the rows of a block."""
    query, value = block.inputs.query, block.inputs.value
    logits = _compute_logits(plan, segment, block.inputs, row)
    top = logits.max(axis=-1, keepdims=True, initial=-jnp.inf)
    top = jnp.where(top == -jnp.inf, 0, top)  # a row that sees no key
    weights = jnp.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True)
    sees_none = total == 0
    total = jnp.where(sees_none, 1, total)
    drop_weights, keep_scale = drop(segment, row)
    out = _multiply_keys(drop_weights(weights).astype(value.dtype), value)
    log_sum = jnp.where(sees_none, jnp.inf, top + jnp.log(total))
    return (out * (keep_scale / total)).astype(query.dtype), log_sum


def _push_forward_block(
    plan: Plan, segment: Segment, block: Operands, drop: Callable, row: Int32[Array, ""]
) -> tuple[
    Float[Array, "batch key_heads heads rows dim"], Float[Array, "batch key_heads heads rows 1"]
]:
    """Compute the tangents of the output and of the log-sum-exp: linear in those of the inputs.

    They are d out = drop(W * d logits) value + drop(W) d value - out * d log_sum, with weights W
    and d log_sum = sum of W * d logits.
    """
    inputs, out, log_sum, tangents = block
    assert out is not None
    assert log_sum is not None
    weights = jnp.exp(_compute_logits(plan, segment, inputs, row) - log_sum)
    drop_weights, keep_scale = drop(segment, row)
    t_out, t_log_sum = jnp.zeros_like(out, log_sum.dtype), jnp.zeros_like(log_sum)
    t_logits = _push_forward_logits(plan, block)
    if t_logits is not None:
        product = weights * t_logits
        t_log_sum = product.sum(axis=-1, keepdims=True)
        t_out = _multiply_keys(drop_weights(product), ops.widen(inputs.value)) * keep_scale
        t_out = t_out - out.astype(log_sum.dtype) * t_log_sum
    if tangents.value is not None:
        t_out = t_out + _multiply_keys(drop_weights(weights), tangents.value) * keep_scale
    return t_out.astype(out.dtype), t_log_sum


def _push_forward_logits(
    plan: Plan, block: Operands
) -> Float[Array, "batch key_heads heads rows keys"] | None:
    inputs, tangents = block.inputs, block.tangents
    parts = []
    if tangents.query is not None:
        parts.append(_multiply_dim(tangents.query, ops.widen(inputs.key)) * plan.scale)
    if tangents.key is not None:
        parts.append(_multiply_dim(ops.widen(inputs.query), tangents.key) * plan.scale)
    if tangents.bias is not None:
        parts.append(tangents.bias)
    return functools.reduce(jnp.add, parts) if parts else None


def _compute_logits(
    plan: Plan, segment: Segment, block: Inputs, row: Int32[Array, ""]
) -> Float[Array, "batch key_heads heads rows keys"]:
    """Compute the scaled and biased products of a block, -inf where a key is invisible."""
    logits = _multiply_dim(block.query, block.key) * plan.scale
    if block.bias is not None:
        logits = logits + block.bias.astype(logits.dtype)
    rows = row + jnp.arange(segment.rows, dtype=jnp.int32)
    keys = jnp.arange(segment.key_low, segment.key_high, dtype=jnp.int32)
    visibility = compute_visibility(plan.static_mask, block.mask_arrays, rows, keys, logits.ndim)
    return logits if visibility is None else jnp.where(visibility, logits, -jnp.inf)


def _build_drop(plan: Plan, turns: tuple, group: Inputs, dropout: DropoutParams | None) -> Callable:
    """Build a function of (segment, row), which returns one that drops weights, and their scale."""
    if dropout is None:
        return lambda segment, row: (lambda weights: weights, 1)
    batch, key_heads, group_heads, queries, _ = group.query.shape
    sizes = plan.queries, plan.keys
    heads = _compute_head_index(plan, turns, (batch, key_heads, group_heads), dropout)

    def draw(rows, columns):
        return random.draw_packed_tile(dropout.mask, heads, sizes, rows, columns)

    is_small = heads.size * queries * plan.keys <= MAX_WEIGHTS_AT_ONCE
    # Words of 32 queries are sliced for a block; fewer queries are one block.
    all_words = draw((0, queries), (0, plan.keys)) if is_small and plan.queries >= WORD else None

    def build_block_drop(segment: Segment, row):
        low, high = segment.key_low, segment.key_high
        if all_words is None:
            words = draw((row, segment.rows), (low, high - low))
        else:
            count = segment.rows // WORD
            words = lax.dynamic_slice_in_dim(all_words, row // WORD, count, axis=QUERIES)
            words = words[..., low:high]
        keep = random.unpack_tile(words, sizes, segment.rows, high - low)
        return lambda weights: jnp.where(keep, weights, 0), dropout.keep_scale

    return build_block_drop


def _compute_head_index(
    plan: Plan, turns: tuple, shape: tuple[int, int, int], dropout: DropoutParams
) -> UInt32[Array, "batch key_heads heads"]:
    """Compute the index of every head of a group over all heads of the larger batch.

    `shape` is (batch, key heads, heads) of the group, and `turns` those along batch and heads.
    """
    batch_turn, head_turn = (turn.astype(jnp.uint32) for turn in turns)
    key_heads = plan.key_heads.together * plan.key_heads.turns
    b, k, h = (lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(3))
    b = plan.batch.locate(batch_turn, b) + dropout.row_offset
    k = plan.key_heads.locate(head_turn, k)
    heads = key_heads * shape[2]
    return compute_head_index(b, k * jnp.uint32(shape[2]) + h, heads, plan.broadcast_dims)


def _multiply_dim(
    a: Float[Array, "batch key_heads heads rows dim"],
    b: Float[Array, "batch key_heads 1 keys dim"],
) -> Float[Array, "batch key_heads heads rows keys"]:
    return multiply("bkgtd,bksd->bkgts", a, b[:, :, 0])


def _multiply_keys(
    weights: Float[Array, "batch key_heads heads rows keys"],
    value: Float[Array, "batch key_heads 1 keys dim"],
) -> Float[Array, "batch key_heads heads rows dim"]:
    return multiply("bkgts,bksd->bkgtd", weights, value[:, :, 0])
