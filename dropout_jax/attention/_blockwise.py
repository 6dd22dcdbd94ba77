"""Attention in blocks of queries, in plain JAX: no array of queries x keys is ever whole.

Each block of queries meets all the keys that it may see in one product, with an ordinary softmax.
The backward pass keeps the output and the log-sum-exp of each row, and computes the weights and the
mask again. (An online softmax over blocks of keys, as in flash attention, was slower on a CPU.)

Blocks are unrolled, so that a causal block ends where its keys end. Beyond 16 blocks, each becomes
a loop over several blocks, which meet the keys of all of them. A loop goes over groups of
(batch, key head) pairs, which `_groups.py` forms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from dropout_jax import ops, random
from dropout_jax.attention import _groups
from dropout_jax.attention._inputs import Dropout, Inputs, StaticMask, compute_visibility

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int32, Shaped, UInt32

MAX_UNROLLED = 16  # blocks
# Draw the mask of a group at once up to this many weights (256 kB of mask).
MAX_WEIGHTS_AT_ONCE = 2**21


class Block(NamedTuple):
    """`turns` times `rows` queries from `first_row`, and the range of keys that they may see."""

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


def attend(
    inputs: Inputs, scale: float, static_mask: StaticMask, dropout: Dropout | None
) -> Float[Array, "batch queries heads dim"]:
    """Compute attention; `dropout` of None is evaluation."""
    params = None
    if dropout is not None:
        key, rate, row_offset = dropout
        keep_scale = ops.compute_keep_scale(rate, ops.compute_dtype(inputs.query))
        row_offset = jnp.uint32(0) if row_offset is None else row_offset
        params = DropoutParams(random.mask_params(key, rate), keep_scale, row_offset)
    return _attend(_groups.choose_plan(inputs, scale, static_mask), inputs, params)


def split_queries(static_mask: StaticMask, queries: int, keys: int) -> list[Block]:
    """Split the queries into blocks; the first query and key of each is a multiple of 32."""
    rows = min(256, max(64, queries // 8 // random.WORD * random.WORD))
    turns = -(-queries // (rows * MAX_UNROLLED))
    whole = queries // rows * rows
    first_rows = range(0, whole, rows * turns)
    parts = [(first, rows, min(turns, (whole - first) // rows)) for first in first_rows]
    parts += [(whole, queries - whole, 1)] * (whole < queries)
    blocks = []
    for first, size, count in parts:
        low, high = static_mask.key_range(first, first + size * count - 1, keys)
        low = low if low == high else low // random.WORD * random.WORD
        blocks.append(Block(first, size, count, low, high))
    return blocks


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    plan: _groups.Plan, inputs: Inputs, dropout: DropoutParams | None
) -> Float[Array, "batch queries heads dim"]:
    return _forward(plan, inputs, dropout)[0]


def _forward(
    plan: _groups.Plan, inputs: Inputs, dropout: DropoutParams | None
) -> tuple[Float[Array, "batch queries heads dim"], Any]:
    def attend_group(_, index):
        group = _groups.slice_group(plan, inputs, index)
        return None, _group_forward(plan, group, _build_drop(plan, index, group, dropout))

    _, (out, log_sum) = _groups.scan_groups(plan, attend_group, None)
    out = _groups.merge_groups(plan, out)
    return out, (inputs, dropout, out, log_sum)


def _backward(
    plan: _groups.Plan, residuals: Any, d_out: Float[Array, "batch queries heads dim"]
) -> tuple[Inputs, None]:
    inputs, dropout, out, log_sum = residuals

    def differentiate_group(d_bias, index):
        group = _groups.slice_group(plan, inputs, index)
        drop = _build_drop(plan, index, group, dropout)
        d_rows, rows = (_groups.slice_positions(plan, x, index) for x in (d_out, out))
        gradients, part = _group_backward(plan, group, drop, d_rows, rows, log_sum[index])
        if d_bias is None or part is None:
            return None, gradients
        return _groups.add_to_split(plan, d_bias, part, index), gradients

    bias = inputs.bias
    d_bias = None if bias is None else _zeros_like(_groups.split_axes(plan, bias), log_sum.dtype)
    d_bias, gradients = _groups.scan_groups(plan, differentiate_group, d_bias)
    if bias is not None:
        d_bias = d_bias.reshape(bias.shape).astype(bias.dtype)
    return Inputs._make([*(_groups.merge_groups(plan, x) for x in gradients), d_bias, None]), None


_attend.defvjp(_forward, _backward)


def _group_forward(
    plan: _groups.Plan, group: Inputs, drop: Callable
) -> list[Shaped[Array, "batch key_heads heads queries *dim"]]:
    """Compute the output and the log-sum-exp of every query of a group."""
    outputs = []
    for block in split_queries(plan.static_mask, group.query.shape[3], group.key.shape[2]):

        def attend_turn(_, row, block=block):
            return None, _block_forward(plan, group, drop, block, row)

        outputs.append(_scan_turns(block, attend_turn, None)[1])
    return [jnp.concatenate(parts, axis=3) for parts in zip(*outputs, strict=True)]


def _block_forward(
    plan: _groups.Plan, group: Inputs, drop: Callable, block: Block, row: int | Int32[Array, ""]
) -> tuple[
    Float[Array, "batch key_heads heads rows dim"], Float[Array, "batch key_heads heads rows"]
]:
    if block.key_low == block.key_high:  # the block sees no key
        out = jnp.zeros_like(_slice_rows(group.query, row, block.rows))
        return out, jnp.full(out.shape[:-1], jnp.inf, ops.compute_dtype(out))
    logits = _compute_logits(plan, group, block, row)
    top = logits.max(axis=-1, keepdims=True)
    top = jnp.where(top == -jnp.inf, 0, top)  # a row that sees no key
    weights = jnp.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True)
    drop_weights, keep_scale = drop(block, row)
    value = _slice_keys(group.value, block)
    out = _einsum_wide("bkgts,bksd->bkgtd", drop_weights(weights).astype(value.dtype), value)
    out = out * (keep_scale / jnp.where(total == 0, 1, total))
    log_sum = jnp.where(total == 0, jnp.inf, top + jnp.log(jnp.where(total == 0, 1, total)))
    return out.astype(value.dtype), log_sum[..., 0]


def _group_backward(
    plan: _groups.Plan,
    group: Inputs,
    drop: Callable,
    d_out: Float[Array, "batch key_heads heads queries dim"],
    out: Float[Array, "batch key_heads heads queries dim"],
    log_sum: Float[Array, "batch key_heads heads queries"],
) -> tuple[list[Float[Array, "_ _ _ _ _"]], Float[Array, "..."] | None]:
    """Compute the gradients of the query, key and value of a group, and that of the bias."""
    wide = log_sum.dtype
    centre = (d_out.astype(wide) * out.astype(wide)).sum(axis=-1)
    rows = (d_out, centre, log_sum)
    sources = [x for x in (group.key, group.value, group.bias) if x is not None]
    totals = [_zeros_like(x, wide) for x in sources]
    d_query = []
    for block in split_queries(plan.static_mask, group.query.shape[3], group.key.shape[2]):

        def differentiate_turn(totals, row, block=block):
            return _block_backward(plan, group, drop, block, row, rows, totals)

        totals, d_rows = _scan_turns(block, differentiate_turn, totals)
        d_query.append(d_rows)
    d_key, d_value, d_bias = [*totals, None][:3]
    d_query = jnp.concatenate(d_query, axis=3)
    gradients = (d_query, d_key[:, :, None], d_value[:, :, None])
    return [x.astype(group.query.dtype) for x in gradients], d_bias


def _block_backward(
    plan: _groups.Plan,
    group: Inputs,
    drop: Callable,
    block: Block,
    row: int | Int32[Array, ""],
    rows: tuple[Float[Array, "..."], ...],
    totals: list[Float[Array, "..."]],
) -> tuple[list[Float[Array, "..."]], Float[Array, "batch key_heads heads rows dim"]]:
    """Add the gradients of key, value and bias to the totals; return those of the block's rows."""
    query, d_out, centre, log_sum = (_slice_rows(x, row, block.rows) for x in (group.query, *rows))
    if block.key_low == block.key_high:
        return totals, jnp.zeros(query.shape, log_sum.dtype)
    key, value = _slice_keys(group.key, block), _slice_keys(group.value, block)
    weights = jnp.exp(_compute_logits(plan, group, block, row) - log_sum[..., None])
    drop_weights, keep_scale = drop(block, row)
    d_weights = drop_weights(_einsum_wide("bkgtd,bksd->bkgts", d_out, value)) * keep_scale
    d_logits = weights * (d_weights - centre[..., None])
    narrow, kept = d_logits.astype(key.dtype), drop_weights(weights).astype(value.dtype)
    offsets = (0, 0, block.key_low, 0)
    parts = [
        (_einsum_wide("bkgts,bkgtd->bksd", narrow, query) * plan.scale, offsets),
        (_einsum_wide("bkgts,bkgtd->bksd", kept, d_out) * keep_scale, offsets),
    ]
    if group.bias is not None:
        parts.append(_reduce_to_bias(group.bias, d_logits, block, row))
    totals = [_groups.add_at(total, *part) for total, part in zip(totals, parts, strict=True)]
    return totals, _einsum_wide("bkgts,bksd->bkgtd", narrow, key) * plan.scale


def _compute_logits(
    plan: _groups.Plan, group: Inputs, block: Block, row: int | Int32[Array, ""]
) -> Float[Array, "batch key_heads heads rows keys"]:
    """Compute the scaled and biased products of a block, -inf where a key is invisible."""
    query = _slice_rows(group.query, row, block.rows)
    logits = _einsum_wide("bkgtd,bksd->bkgts", query, _slice_keys(group.key, block)) * plan.scale
    if group.bias is not None:
        logits = logits + _slice_tile(group.bias, block, row).astype(logits.dtype)
    mask_arrays = group.mask_arrays
    if mask_arrays.mask is not None:
        mask_arrays = mask_arrays._replace(mask=_slice_tile(mask_arrays.mask, block, row))
    rows = row + jnp.arange(block.rows, dtype=jnp.int32)
    keys = jnp.arange(block.key_low, block.key_high, dtype=jnp.int32)
    visibility = compute_visibility(plan.static_mask, mask_arrays, rows, keys)
    return logits if visibility is None else jnp.where(visibility, logits, -jnp.inf)


def _build_drop(
    plan: _groups.Plan, index: Int32[Array, ""], group: Inputs, dropout: DropoutParams | None
) -> Callable:
    """Build a function of (block, row), which returns one that drops weights, and their scale."""
    if dropout is None:
        return lambda block, row: (lambda weights: weights, 1)
    *lead, queries, _ = group.query.shape
    sizes = queries, group.key.shape[2]
    heads = _compute_head_index(plan, index, group, dropout)

    def draw(rows, columns):
        return random.draw_packed_tile(dropout.mask, heads, sizes, rows, columns)

    is_small = math.prod(lead) * math.prod(sizes) <= MAX_WEIGHTS_AT_ONCE and queries >= random.WORD
    all_words = draw((0, queries), (0, sizes[1])) if is_small else None

    def build_block_drop(block: Block, row):
        rows, keys = (row, block.rows), (block.key_low, block.key_high - block.key_low)
        if all_words is None:
            words = draw(rows, keys)
        else:
            count = -(-block.rows // random.WORD)
            words = _slice_rows(all_words, row // random.WORD, count)
            words = words[..., block.key_low : block.key_high]
        keep = random.unpack_tile(words, sizes, block.rows, keys[1])
        return lambda weights: jnp.where(keep, weights, 0), dropout.keep_scale

    return build_block_drop


def _compute_head_index(
    plan: _groups.Plan, index: Int32[Array, ""], group: Inputs, dropout: DropoutParams
) -> UInt32[Array, "batch key_heads heads"]:
    """Compute the index of every head of a group over all heads of the larger batch."""
    shape = group.query.shape[:3]
    batch_turn, head_turn = (turn.astype(jnp.uint32) for turn in _groups.split_index(plan, index))
    b, k, h = (lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(3))
    b = b * jnp.uint32(plan.batch_parts[1]) + batch_turn + dropout.row_offset
    k = k * jnp.uint32(plan.head_parts[1]) + head_turn
    return b * jnp.uint32(math.prod(plan.head_parts) * shape[2]) + k * jnp.uint32(shape[2]) + h


def _einsum_wide(
    subscripts: str, a: Float[Array, "..."], b: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Compute a product with sums of the precision that a softmax needs."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=ops.compute_dtype(a))


def _slice_keys(
    x: Float[Array, "batch key_heads all_keys dim"], block: Block
) -> Float[Array, "batch key_heads keys dim"]:
    return x[:, :, block.key_low : block.key_high]


def _slice_rows(
    x: Shaped[Array, "batch key_heads heads queries *rest"], row: int | Int32[Array, ""], rows: int
) -> Shaped[Array, "batch key_heads heads {rows} *rest"]:
    return lax.dynamic_slice_in_dim(x, row, rows, axis=3)


def _slice_tile(
    x: Shaped[Array, "batch key_heads heads queries keys"],
    block: Block,
    row: int | Int32[Array, ""],
) -> Shaped[Array, "batch key_heads heads block_rows block_keys"]:
    """Slice the tile of a bias or a mask that a block meets; axes of length 1 stay."""
    queries, keys = x.shape[3:]
    x = x if queries == 1 else _slice_rows(x, row, block.rows)
    return x if keys == 1 else x[..., block.key_low : block.key_high]


def _reduce_to_bias(
    bias: Float[Array, "#batch #key_heads #heads queries keys"],
    d_logits: Float[Array, "batch key_heads heads block_rows block_keys"],
    block: Block,
    row: int | Int32[Array, ""],
) -> tuple[Float[Array, "..."], tuple]:
    """Sum a block's gradient of the logits to the axes of the bias; return it and its offsets."""
    shared = tuple(axis for axis in range(5) if bias.shape[axis] == 1)
    queries, keys = bias.shape[3:]
    offsets = (0, 0, 0, 0 if queries == 1 else row, 0 if keys == 1 else block.key_low)
    return d_logits.sum(axis=shared, keepdims=True), offsets


def _zeros_like(x: Shaped[Array, "*shape"], dtype: DTypeLike) -> Shaped[Array, "*shape"]:
    """Return zeros of the shape of x that, under shard_map, vary over the devices as x does."""
    return jnp.where(False, x, jnp.zeros_like(x)).astype(dtype)


def _scan_turns(block: Block, fn: Callable, carry: Any) -> Any:
    """Scan carry, rows = fn(carry, row) over the turns of a block, and join the rows."""
    if block.turns == 1:
        return fn(carry, block.first_row)
    first_rows = block.first_row + block.rows * jnp.arange(block.turns, dtype=jnp.int32)
    carry, rows = lax.scan(fn, carry, first_rows)
    return carry, jax.tree.map(_join_turns, rows)


def _join_turns(
    x: Shaped[Array, "turns batch key_heads heads rows *rest"],
) -> Shaped[Array, "batch key_heads heads queries *rest"]:
    x = jnp.moveaxis(x, 0, 3)  # batch, key head, head, turn, row, ...
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])
