"""Flash attention with dropout inside, in Pallas: for GPUs, and interpreted elsewhere.

One program a block of queries goes over the keys that they may see with an online softmax (Dao et
al., "FlashAttention-2", 2023), dropping weights on the way; backward, one program a block of keys
and one a block of queries make weights and mask again from the log-sum-exp and the dice.

Written with the portable part of Pallas (blocks, loops, dots), which Pallas lowers for a GPU
through Triton on jax 0.10 to 0.12, where that path is deprecated from 0.11. Mosaic GPU, its heir on
Hopper, asks for explicit tensor-core and copy instructions whose layouts only a GPU can check; none
was available when this was written. So this kernel has been run in interpret mode only, and is
taken only when it is asked for by name. It has no gradient for the bias and no second derivatives,
and is to be called under jax.shard_map with check_vma=False.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from dropout_jax import ops, random
from dropout_jax.attention._inputs import Inputs, Reach, visible

if TYPE_CHECKING:
    from jaxtyping import Array, Float

BLOCK = 64  # queries, and keys, of a tile


class Plan(NamedTuple):
    """What is known when the program is traced."""

    scale: float
    reach: Reach
    queries: int  # before they were padded to whole blocks
    keys: int
    heads_to_a_key_head: int
    heads: int
    drops: bool
    interpret: bool


class Rows(NamedTuple):
    """What the backward pass knows of each query."""

    d_out: Float[Array, "batch queries heads dim"]
    centre: Float[Array, "batch heads queries"]  # the row sum of each weight times its gradient
    log_sum: Float[Array, "batch heads queries"]


def attention(inputs: Inputs, scale: float, reach: Reach, dropout) -> Float[Array, "..."]:
    """Attention with dropout (key, rate) or None; the result has the shape of the query."""
    query, key = inputs.query, inputs.key
    interpret = jax.default_backend() != "gpu"
    heads = query.shape[2]
    group = heads // key.shape[2]
    lengths = query.shape[1], key.shape[1]
    plan = Plan(scale, reach, *lengths, group, heads, dropout is not None, interpret)
    words, inverse = _words(dropout, ops.compute_dtype(query))
    if inputs.bias is not None:
        inputs = inputs._replace(bias=_without_gradient(inputs.bias))
    out: Any = _attend(plan, _padded(inputs), words, inverse)
    return out[:, : query.shape[1]]


def _words(dropout, wide):
    """The seed and the threshold as one array, and the inverse of the kept share as another."""
    if dropout is None:
        return jnp.zeros(3, jnp.uint32), jnp.ones(1, wide)
    key, rate, start = dropout
    if start is not None:
        raise NotImplementedError(
            "implementation='kernel' has no dropout_start. Use 'blockwise' or None."
        )
    dice = random.dice(key, rate)
    return jnp.stack([*dice.seed, dice.keep]), ops.inverse_share(rate, wide)[None]


@jax.custom_vjp
def _without_gradient(bias):
    return bias


def _refuse(*_):
    raise NotImplementedError(
        'implementation="kernel" has no gradient for bias. Stop it with lax.stop_gradient(bias), '
        'or ask for implementation="blockwise".'
    )


_without_gradient.defvjp(lambda bias: (bias, None), _refuse)


def _padded(inputs: Inputs) -> Inputs:
    """Whole blocks of queries and keys; axes of length 1 of bias and mask stay."""
    queries, keys = (-x.shape[1] % BLOCK for x in inputs[:2])
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))
        for x, more in zip(inputs[:3], (queries, keys, keys), strict=True)
    )

    def pad_tile(x):
        more = [0 if size == 1 else n for size, n in zip(x.shape[2:], (queries, keys), strict=True)]
        return jnp.pad(x, ((0, 0), (0, 0), (0, more[0]), (0, more[1])))

    bias, mask = (None if x is None else pad_tile(x) for x in (inputs.bias, inputs.hidden.mask))
    return Inputs(query, key, value, bias, inputs.hidden._replace(mask=mask))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, inputs: Inputs, words, inverse):
    return _forward(plan, inputs, words, inverse)[0]


def _forward(plan: Plan, inputs: Inputs, words, inverse):
    batch, queries, heads, _ = inputs.query.shape
    wide = inverse.dtype
    out, log_sum = pl.pallas_call(
        functools.partial(_forward_kernel, plan),
        grid=(batch, heads, queries // BLOCK),
        in_specs=_specs(plan, (inputs, words, inverse)),
        out_specs=[
            pl.BlockSpec((None, BLOCK, None, inputs.query.shape[3]), lambda b, n, i: (b, i, n, 0)),
            pl.BlockSpec((None, None, BLOCK), lambda b, n, i: (b, n, i)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype),
            jax.ShapeDtypeStruct((batch, heads, queries), wide),
        ],
        interpret=plan.interpret,
    )(inputs, words, inverse)
    return out, (inputs, words, inverse, out, log_sum)


def _backward(plan: Plan, kept, d_out):
    inputs, words, inverse, out, log_sum = kept
    wide = inverse.dtype
    centre = jnp.einsum("btnd,btnd->bnt", d_out.astype(wide), out.astype(wide))
    arguments = inputs, words, inverse, Rows(d_out, centre, log_sum)
    batch, queries, heads, dim = inputs.query.shape
    keys, key_heads = inputs.key.shape[1:3]

    def call(kernel, length, outputs):
        shape = (batch, length, heads, dim)
        block = pl.BlockSpec((None, BLOCK, None, dim), lambda b, n, i: (b, i, n, 0))
        return pl.pallas_call(
            functools.partial(kernel, plan),
            grid=(batch, heads, length // BLOCK),
            in_specs=_specs(plan, arguments),
            out_specs=[block] * outputs,
            out_shape=[jax.ShapeDtypeStruct(shape, wide)] * outputs,
            interpret=plan.interpret,
        )(*arguments)

    (d_query,) = call(_query_kernel, queries, 1)
    pair = call(_key_kernel, keys, 2)  # a head's own; those of a key head are summed
    d_key, d_value = (x.reshape(batch, keys, key_heads, -1, dim).sum(axis=3) for x in pair)
    narrow = (x.astype(inputs.query.dtype) for x in (d_query, d_key, d_value))
    return Inputs._make([*narrow, None, None]), None, None


_attend.defvjp(_forward, _backward)


def _specs(plan: Plan, arguments):
    """Every program sees the whole rows of its (batch, head); loads say which part."""
    inputs, _, _, *rows = arguments

    def positions(x, group=1):
        shape = (None, x.shape[1], None, x.shape[3])
        return pl.BlockSpec(shape, lambda b, n, i: (b, 0, n // group, 0))

    def tile(x):
        batch, head = (size > 1 for size in x.shape[:2])
        shape = (None, None, *x.shape[2:])
        return pl.BlockSpec(shape, lambda b, n, i: (b if batch else 0, n if head else 0, 0, 0))

    def whole(x):
        return pl.BlockSpec(x.shape, lambda b, n, i: (0,) * x.ndim)

    group = plan.heads_to_a_key_head
    arrays = positions(inputs.query), *(positions(x, group) for x in inputs[1:3])
    specs = Inputs._make([*arrays, *jax.tree.map(tile, inputs[3:])])
    per_query = pl.BlockSpec((None, None, inputs.query.shape[1]), lambda b, n, i: (b, n, 0))
    found = [specs, *(whole(x) for x in arguments[1:3])]
    return found + [Rows._make([positions(each.d_out), per_query, per_query]) for each in rows]


def _forward_kernel(plan: Plan, refs: Inputs, words, inverse, out, log_sum):
    wide = inverse.dtype
    head, first = _program(plan)

    def one_block(j, carry):
        total, top, sums = carry
        logits, keep = _tile(plan, refs, words, head, first, j * BLOCK, wide)
        new_top = jnp.maximum(top, logits.max(axis=1))
        safe = jnp.where(new_top == -jnp.inf, 0, new_top)
        shrink = jnp.exp(top - safe)
        weights = jnp.exp(logits - safe[:, None])
        value = refs.value[pl.ds(j * BLOCK, BLOCK), :]
        dropped = jnp.where(keep, weights, 0).astype(value.dtype)
        sums = sums * shrink[:, None] + jnp.dot(dropped, value, preferred_element_type=wide)
        return total * shrink + weights.sum(axis=1), new_top, sums

    start = jnp.zeros(BLOCK, wide), jnp.full(BLOCK, -jnp.inf, wide), jnp.zeros(out.shape, wide)
    total, top, sums = lax.fori_loop(*_key_blocks(plan, first), one_block, start)
    blind = total == 0
    out[...] = (sums * (inverse[0] / jnp.where(blind, 1, total))[:, None]).astype(out.dtype)
    log_sum[...] = jnp.where(blind, jnp.inf, top + jnp.log(jnp.where(blind, 1, total)))


def _program(plan: Plan):
    """Which head of all this program has, and its first query or key."""
    head = pl.program_id(0) * plan.heads + pl.program_id(1)
    return head.astype(jnp.uint32), pl.program_id(2) * BLOCK


def _query_kernel(plan: Plan, refs: Inputs, words, inverse, rows: Rows, d_query):
    head, first = _program(plan)

    def one_block(j, sums):
        _, d_logits = _gradient_tile(plan, refs, words, inverse, rows, head, first, j * BLOCK)
        key = refs.key[pl.ds(j * BLOCK, BLOCK), :]
        return sums + jnp.dot(d_logits.astype(key.dtype), key, preferred_element_type=sums.dtype)

    start = jnp.zeros(d_query.shape, inverse.dtype)
    d_query[...] = lax.fori_loop(*_key_blocks(plan, first), one_block, start) * plan.scale


def _key_kernel(plan: Plan, refs: Inputs, words, inverse, rows: Rows, d_key, d_value):
    head, first = _program(plan)

    def one_block(i, sums):
        dropped, d_logits = _gradient_tile(plan, refs, words, inverse, rows, head, i * BLOCK, first)
        query, d_out = (x[pl.ds(i * BLOCK, BLOCK), :] for x in (refs.query, rows.d_out))
        parts = ((d_logits, query), (dropped, d_out))
        return tuple(
            total + jnp.dot(a.astype(b.dtype).T, b, preferred_element_type=total.dtype)
            for total, (a, b) in zip(sums, parts, strict=True)
        )

    start = (jnp.zeros(d_key.shape, inverse.dtype),) * 2
    d_key_sum, d_value_sum = lax.fori_loop(*_query_blocks(plan, first), one_block, start)
    d_key[...], d_value[...] = d_key_sum * plan.scale, d_value_sum * inverse[0]


def _gradient_tile(plan: Plan, refs: Inputs, words, inverse, rows: Rows, head, row, column):
    """The dropped weights of a tile, still to be scaled, and the gradient of its logits."""
    wide = inverse.dtype
    logits, keep = _tile(plan, refs, words, head, row, column, wide)
    weights = jnp.exp(logits - rows.log_sum[pl.ds(row, BLOCK)][:, None])
    value, d_out = refs.value[pl.ds(column, BLOCK), :], rows.d_out[pl.ds(row, BLOCK), :]
    d_dropped = jnp.dot(d_out, value.T, preferred_element_type=wide)
    d_weights = jnp.where(keep, d_dropped, 0) * inverse[0]
    d_logits = weights * (d_weights - rows.centre[pl.ds(row, BLOCK)][:, None])
    return jnp.where(keep, weights, 0), d_logits


def _tile(plan: Plan, refs: Inputs, words, head, row, column, wide):
    """The logits of a tile, -inf where hidden, and which of its weights dropout keeps."""
    query, key = refs.query[pl.ds(row, BLOCK), :], refs.key[pl.ds(column, BLOCK), :]
    logits = jnp.dot(query, key.T, preferred_element_type=wide) * plan.scale
    if refs.bias is not None:
        logits = logits + _part(refs.bias, row, column).astype(wide)
    rows = row + lax.iota(jnp.int32, BLOCK)
    keys = column + lax.iota(jnp.int32, BLOCK)
    hidden = jax.tree.map(lambda ref: _part(ref, row, column), refs.hidden)
    seen = (keys < plan.keys)[None, :]
    more = visible(plan.reach, hidden, rows, keys)
    seen = seen if more is None else seen & more
    return jnp.where(seen, logits, -jnp.inf), _keep(plan, words, head, rows, column)


def _part(ref, row, column):
    """A tile of a bias, a mask or lengths; an axis of length 1 is shared."""
    places = zip((row, column), ref.shape, strict=True)
    return ref[tuple(slice(None) if size == 1 else pl.ds(at, BLOCK) for at, size in places)]


def _keep(plan: Plan, words, head, rows, column):
    if not plan.drops:
        return True
    dice = random.Dice((words[0], words[1]), words[2])
    row = head * jnp.uint32(plan.queries) + rows.astype(jnp.uint32)
    found = random.row_words(dice, row, plan.keys, column, BLOCK, unrolled=True)
    if plan.keys < random.WORD:  # one word holds the row, and what is past it is hidden
        found = jnp.broadcast_to(found, (BLOCK, BLOCK // random.WORD))
    return random.unpack_rows(found, BLOCK)


def _key_blocks(plan: Plan, row):
    """The range of blocks of keys that the queries from `row` on may see."""
    left, right = _reach(plan)
    low = jnp.maximum(row - left, 0) // BLOCK
    high = jnp.minimum(row + BLOCK - 1 + right, plan.keys - 1) // BLOCK + 1
    return low, high


def _query_blocks(plan: Plan, column):
    """The range of blocks of queries that may see the keys from `column` on."""
    left, right = _reach(plan)
    low = jnp.maximum(column - right, 0) // BLOCK
    high = jnp.minimum(column + BLOCK - 1 + left, plan.queries - 1) // BLOCK + 1
    return low, high


def _reach(plan: Plan) -> tuple[int, int]:
    left, right = plan.reach.window or (plan.queries, plan.keys)
    return left, min(right, 0) if plan.reach.is_causal else right
