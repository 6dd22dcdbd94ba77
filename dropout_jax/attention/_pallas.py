"""Flash attention with dropout inside the kernel, in Pallas: for GPUs, interpreted elsewhere.

Forward, one program per block of queries goes over the keys that they may see with an online
softmax (Dao et al., "FlashAttention-2", 2023), and drops weights. Backward, one program per block
of keys and one per block of queries compute the weights and the mask again from the log-sum-exp and
the parameters of the mask.

The kernel uses the portable part of Pallas (blocks, loops, dots), which Pallas lowers for a GPU
through Triton on jax 0.10 to 0.12; jax 0.11 deprecates that path. Its successor on Hopper, Mosaic
GPU, needs explicit tensor-core and copy instructions whose layouts only a GPU can check. This
kernel is tested in interpret mode only, and runs only if `implementation` names it. It has no
gradient for the bias and no second derivatives. Under jax.shard_map it needs check_vma=False.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from dropout_jax import ops, random
from dropout_jax.attention._inputs import Dropout, Inputs, StaticMask, compute_visibility

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int32, UInt32

    BlockRange = tuple[Int32[Array, ""], Int32[Array, ""]]

BLOCK = 64  # queries, and keys, of a tile


class Plan(NamedTuple):
    """What is known when the program is traced."""

    scale: float
    static_mask: StaticMask
    queries: int  # before padding to whole blocks
    keys: int
    heads_per_key_head: int
    heads: int
    drops: bool
    interpret: bool


class Rows(NamedTuple):
    """The inputs of the backward pass for each query."""

    d_out: Float[Array, "batch queries heads dim"]
    centre: Float[Array, "batch heads queries"]  # the sum over keys of weight times gradient
    log_sum: Float[Array, "batch heads queries"]


def attend(
    inputs: Inputs, scale: float, static_mask: StaticMask, dropout: Dropout | None
) -> Float[Array, "batch queries heads dim"]:
    """Compute attention; `dropout` of None is evaluation."""
    query, key = inputs.query, inputs.key
    interpret = jax.default_backend() != "gpu"
    heads = query.shape[2]
    group = heads // key.shape[2]
    lengths = query.shape[1], key.shape[1]
    plan = Plan(scale, static_mask, *lengths, group, heads, dropout is not None, interpret)
    words, keep_scale = _pack_dropout(dropout, ops.compute_dtype(query))
    if inputs.bias is not None:
        inputs = inputs._replace(bias=_refuse_gradient(inputs.bias))
    out: Any = _attend(plan, _pad_to_blocks(inputs), words, keep_scale)
    return out[:, : query.shape[1]]


def _pack_dropout(
    dropout: Dropout | None, wide: DTypeLike
) -> tuple[UInt32[Array, "3"], Float[Array, "1"]]:
    """Return the seed and the threshold as one array, and the scale of kept weights as another."""
    if dropout is None:
        return jnp.zeros(3, jnp.uint32), jnp.ones(1, wide)
    key, rate, row_offset = dropout
    if row_offset is not None:
        raise NotImplementedError(
            "implementation='kernel' does not support dropout_row_offset. Pass 'blockwise' or None."
        )
    params = random.mask_params(key, rate)
    return jnp.stack([*params.seed, params.threshold]), ops.compute_keep_scale(rate, wide)[None]


@jax.custom_vjp
def _refuse_gradient(bias: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return bias


def _raise_no_gradient(*_: Any) -> NoReturn:
    raise NotImplementedError(
        "implementation='kernel' has no gradient for bias. Stop it with lax.stop_gradient(bias), "
        "or pass implementation='blockwise'."
    )


_refuse_gradient.defvjp(lambda bias: (bias, None), _raise_no_gradient)


def _pad_to_blocks(inputs: Inputs) -> Inputs:
    """Pad to whole blocks of queries and keys; axes of length 1 of bias and mask stay."""
    queries, keys = (-x.shape[1] % BLOCK for x in inputs[:2])
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))
        for x, more in zip(inputs[:3], (queries, keys, keys), strict=True)
    )

    def pad_tile(x):
        more = [0 if size == 1 else n for size, n in zip(x.shape[2:], (queries, keys), strict=True)]
        return jnp.pad(x, ((0, 0), (0, 0), (0, more[0]), (0, more[1])))

    bias, mask = (
        None if x is None else pad_tile(x) for x in (inputs.bias, inputs.mask_arrays.mask)
    )
    return Inputs(query, key, value, bias, inputs.mask_arrays._replace(mask=mask))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    plan: Plan, inputs: Inputs, words: UInt32[Array, "3"], keep_scale: Float[Array, "1"]
) -> Float[Array, "batch queries heads dim"]:
    return _forward(plan, inputs, words, keep_scale)[0]


def _forward(
    plan: Plan, inputs: Inputs, words: UInt32[Array, "3"], keep_scale: Float[Array, "1"]
) -> tuple[Float[Array, "batch queries heads dim"], Any]:
    batch, queries, heads, _ = inputs.query.shape
    wide = keep_scale.dtype
    out, log_sum = pl.pallas_call(
        functools.partial(_forward_kernel, plan),
        grid=(batch, heads, queries // BLOCK),
        in_specs=_build_specs(plan, (inputs, words, keep_scale)),
        out_specs=[
            pl.BlockSpec((None, BLOCK, None, inputs.query.shape[3]), lambda b, n, i: (b, i, n, 0)),
            pl.BlockSpec((None, None, BLOCK), lambda b, n, i: (b, n, i)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype),
            jax.ShapeDtypeStruct((batch, heads, queries), wide),
        ],
        interpret=plan.interpret,
    )(inputs, words, keep_scale)
    return out, (inputs, words, keep_scale, out, log_sum)


def _backward(
    plan: Plan, residuals: Any, d_out: Float[Array, "batch queries heads dim"]
) -> tuple[Inputs, None, None]:
    inputs, words, keep_scale, out, log_sum = residuals
    wide = keep_scale.dtype
    centre = jnp.einsum("btnd,btnd->bnt", d_out.astype(wide), out.astype(wide))
    arguments = inputs, words, keep_scale, Rows(d_out, centre, log_sum)
    batch, queries, heads, dim = inputs.query.shape
    keys, key_heads = inputs.key.shape[1:3]

    def call(kernel, length, outputs):
        shape = (batch, length, heads, dim)
        block = pl.BlockSpec((None, BLOCK, None, dim), lambda b, n, i: (b, i, n, 0))
        return pl.pallas_call(
            functools.partial(kernel, plan),
            grid=(batch, heads, length // BLOCK),
            in_specs=_build_specs(plan, arguments),
            out_specs=[block] * outputs,
            out_shape=[jax.ShapeDtypeStruct(shape, wide)] * outputs,
            interpret=plan.interpret,
        )(*arguments)

    (d_query,) = call(_query_kernel, queries, 1)
    pair = call(_key_kernel, keys, 2)  # by head; summed to key heads below
    d_key, d_value = (x.reshape(batch, keys, key_heads, -1, dim).sum(axis=3) for x in pair)
    narrow = (x.astype(inputs.query.dtype) for x in (d_query, d_key, d_value))
    return Inputs._make([*narrow, None, None]), None, None


_attend.defvjp(_forward, _backward)


def _build_specs(plan: Plan, arguments: tuple) -> list[Any]:
    """Give every program the whole rows of its (batch, head); loads select a part."""
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

    group = plan.heads_per_key_head
    arrays = positions(inputs.query), *(positions(x, group) for x in inputs[1:3])
    specs = Inputs._make([*arrays, *jax.tree.map(tile, inputs[3:])])
    per_query = pl.BlockSpec((None, None, inputs.query.shape[1]), lambda b, n, i: (b, n, 0))
    row_specs = [Rows._make([positions(each.d_out), per_query, per_query]) for each in rows]
    return [specs, *(whole(x) for x in arguments[1:3]), *row_specs]


def _forward_kernel(
    plan: Plan, refs: Inputs, words: Any, keep_scale: Any, out: Any, log_sum: Any
) -> None:
    wide = keep_scale.dtype
    head, first = _locate_program(plan)

    def add_block(j, carry):
        total, top, sums = carry
        logits, keep = _compute_tile(plan, refs, words, head, first, j * BLOCK, wide)
        new_top = jnp.maximum(top, logits.max(axis=1))
        safe = jnp.where(new_top == -jnp.inf, 0, new_top)
        shrink = jnp.exp(top - safe)
        weights = jnp.exp(logits - safe[:, None])
        value = refs.value[pl.ds(j * BLOCK, BLOCK), :]
        dropped = jnp.where(keep, weights, 0).astype(value.dtype)
        sums = sums * shrink[:, None] + jnp.dot(dropped, value, preferred_element_type=wide)
        return total * shrink + weights.sum(axis=1), new_top, sums

    initial = jnp.zeros(BLOCK, wide), jnp.full(BLOCK, -jnp.inf, wide), jnp.zeros(out.shape, wide)
    total, top, sums = lax.fori_loop(*_key_block_range(plan, first), add_block, initial)
    is_blind = total == 0
    out[...] = (sums * (keep_scale[0] / jnp.where(is_blind, 1, total))[:, None]).astype(out.dtype)
    log_sum[...] = jnp.where(is_blind, jnp.inf, top + jnp.log(jnp.where(is_blind, 1, total)))


def _locate_program(plan: Plan) -> tuple[UInt32[Array, ""], Int32[Array, ""]]:
    """Return the index of this program's head over the batch, and its first query or key."""
    head = pl.program_id(0) * plan.heads + pl.program_id(1)
    return head.astype(jnp.uint32), pl.program_id(2) * BLOCK


def _query_kernel(
    plan: Plan, refs: Inputs, words: Any, keep_scale: Any, rows: Rows, d_query: Any
) -> None:
    head, first = _locate_program(plan)

    def add_block(j, sums):
        _, d_logits = _compute_gradient_tile(
            plan, refs, words, keep_scale, rows, head, first, j * BLOCK
        )
        key = refs.key[pl.ds(j * BLOCK, BLOCK), :]
        return sums + jnp.dot(d_logits.astype(key.dtype), key, preferred_element_type=sums.dtype)

    initial = jnp.zeros(d_query.shape, keep_scale.dtype)
    d_query[...] = lax.fori_loop(*_key_block_range(plan, first), add_block, initial) * plan.scale


def _key_kernel(
    plan: Plan, refs: Inputs, words: Any, keep_scale: Any, rows: Rows, d_key: Any, d_value: Any
) -> None:
    head, first = _locate_program(plan)

    def add_block(i, sums):
        dropped, d_logits = _compute_gradient_tile(
            plan, refs, words, keep_scale, rows, head, i * BLOCK, first
        )
        query, d_out = (x[pl.ds(i * BLOCK, BLOCK), :] for x in (refs.query, rows.d_out))
        parts = ((d_logits, query), (dropped, d_out))
        return tuple(
            total + jnp.dot(a.astype(b.dtype).T, b, preferred_element_type=total.dtype)
            for total, (a, b) in zip(sums, parts, strict=True)
        )

    initial = (jnp.zeros(d_key.shape, keep_scale.dtype),) * 2
    d_key_sum, d_value_sum = lax.fori_loop(*_query_block_range(plan, first), add_block, initial)
    d_key[...], d_value[...] = d_key_sum * plan.scale, d_value_sum * keep_scale[0]


def _compute_gradient_tile(
    plan: Plan,
    refs: Inputs,
    words: Any,
    keep_scale: Any,
    rows: Rows,
    head: Any,
    row: Any,
    column: Any,
) -> tuple[Float[Array, "rows keys"], Float[Array, "rows keys"]]:
    """Compute the dropped, unscaled weights of a tile, and the gradient of its logits."""
    wide = keep_scale.dtype
    logits, keep = _compute_tile(plan, refs, words, head, row, column, wide)
    weights = jnp.exp(logits - rows.log_sum[pl.ds(row, BLOCK)][:, None])
    value, d_out = refs.value[pl.ds(column, BLOCK), :], rows.d_out[pl.ds(row, BLOCK), :]
    d_dropped = jnp.dot(d_out, value.T, preferred_element_type=wide)
    d_weights = jnp.where(keep, d_dropped, 0) * keep_scale[0]
    d_logits = weights * (d_weights - rows.centre[pl.ds(row, BLOCK)][:, None])
    return jnp.where(keep, weights, 0), d_logits


def _compute_tile(
    plan: Plan, refs: Inputs, words: Any, head: Any, row: Any, column: Any, wide: Any
) -> tuple[Float[Array, "rows keys"], Bool[Array, "rows keys"] | bool]:
    """Compute the logits of a tile, -inf where invisible, and which weights dropout keeps."""
    query, key = refs.query[pl.ds(row, BLOCK), :], refs.key[pl.ds(column, BLOCK), :]
    logits = jnp.dot(query, key.T, preferred_element_type=wide) * plan.scale
    if refs.bias is not None:
        logits = logits + _load_tile(refs.bias, row, column).astype(wide)
    rows = row + lax.iota(jnp.int32, BLOCK)
    keys = column + lax.iota(jnp.int32, BLOCK)
    mask_arrays = jax.tree.map(lambda ref: _load_tile(ref, row, column), refs.mask_arrays)
    visibility = (keys < plan.keys)[None, :]
    masked = compute_visibility(plan.static_mask, mask_arrays, rows, keys, 2)
    visibility = visibility if masked is None else visibility & masked
    return jnp.where(visibility, logits, -jnp.inf), _draw_keep_tile(plan, words, head, row, column)


def _load_tile(ref: Any, row: Any, column: Any) -> Any:
    """Load a tile of a bias, a mask or lengths; an axis of length 1 is shared."""
    axes = zip((row, column), ref.shape, strict=True)
    return ref[tuple(slice(None) if size == 1 else pl.ds(at, BLOCK) for at, size in axes)]


def _draw_keep_tile(
    plan: Plan, words: Any, head: Any, row: Any, column: Any
) -> Bool[Array, "rows keys"] | bool:
    if not plan.drops:
        return True
    params = random.MaskParams((words[0], words[1]), words[2])
    sizes, tile = (plan.queries, plan.keys), ((row, BLOCK), (column, BLOCK))
    packed = random.draw_packed_tile(params, head, sizes, *tile, in_kernel=True)
    return random.unpack_tile(packed, sizes, BLOCK, BLOCK)


def _key_block_range(plan: Plan, row: Int32[Array, ""]) -> BlockRange:
    """Return the range of blocks of keys that the queries from `row` on may see."""
    left, right = _resolve_window(plan)
    low = jnp.maximum(row - left, 0) // BLOCK
    high = jnp.minimum(row + BLOCK - 1 + right, plan.keys - 1) // BLOCK + 1
    return low, high


def _query_block_range(plan: Plan, column: Int32[Array, ""]) -> BlockRange:
    """Return the range of blocks of queries that may see the keys from `column` on."""
    left, right = _resolve_window(plan)
    low = jnp.maximum(column - right, 0) // BLOCK
    high = jnp.minimum(column + BLOCK - 1 + left, plan.queries - 1) // BLOCK + 1
    return low, high


def _resolve_window(plan: Plan) -> tuple[int, int]:
    left, right = plan.static_mask.window or (plan.queries, plan.keys)
    return left, min(right, 0) if plan.static_mask.is_causal else right
