"""Flash attention with dropout inside the kernel, in Pallas, for GPUs through Triton.

Forward, one program per block of queries goes over the keys that they may see with an online
softmax (Dao et al., "FlashAttention-2", 2023), and drops weights. Backward, programs per block of
queries, of keys, and of the bias compute the weights and the mask again from the log-sum-exp and
the parameters of the mask.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from dropout_jax import random
from dropout_jax.attention._inputs import Inputs, compute_visibility
from dropout_jax.attention._kernel_inputs import Operands, Plan, pad_to_multiple

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int32

    BlockRange = tuple[Int32[Array, ""] | int, Int32[Array, ""] | int]
    Pair = tuple[Int32[Array, ""], Int32[Array, ""]]  # the indices of a row of the batch and a head

SMALLEST_DIM = 16  # that Triton multiplies


class Blocks(NamedTuple):
    """The queries and the keys of a tile, and the warps that share it."""

    rows: int
    keys: int
    warps: int
    stages: int


# For a kernel, and for the bytes of an element and the dims of a head: the blocks that are fastest
# on an H100 among those that spill no registers there; those of a bias are compiled only.
BLOCKS = {
    "forward": {
        (4, 64): Blocks(128, 64, 8, 2),
        (2, 64): Blocks(64, 128, 4, 2),
        (2, 128): Blocks(128, 64, 8, 3),
        (2, 256): Blocks(128, 32, 8, 2),
        (4, 128): Blocks(128, 64, 8, 2),
        (4, 256): Blocks(32, 32, 8, 1),
    },
    "query": {
        (2, 64): Blocks(64, 128, 4, 2),
        (2, 128): Blocks(128, 64, 8, 3),
        (2, 256): Blocks(128, 32, 8, 2),
        (4, 64): Blocks(128, 64, 8, 2),
        (4, 128): Blocks(128, 32, 8, 2),
        (4, 256): Blocks(32, 32, 8, 1),
    },
    "key": {
        (2, 64): Blocks(64, 64, 4, 2),
        (2, 128): Blocks(32, 64, 4, 2),
        (2, 256): Blocks(128, 32, 8, 1),
        (4, 32): Blocks(64, 128, 8, 2),
        (4, 64): Blocks(64, 128, 8, 2),
        (4, 128): Blocks(32, 32, 4, 2),
        (4, 256): Blocks(32, 16, 8, 1),
    },
    "bias": {
        (2, 64): Blocks(128, 64, 8, 2),
        (2, 128): Blocks(128, 64, 8, 3),
        (2, 256): Blocks(128, 32, 8, 1),
        (4, 64): Blocks(128, 64, 8, 2),
        (4, 128): Blocks(128, 32, 8, 2),
        (4, 256): Blocks(32, 16, 8, 1),
    },
}


class Output(NamedTuple):
    """An array that a kernel writes, the block of a program, and the index of that block."""

    shape: tuple[int, ...]
    dtype: Any
    block: tuple[int | None, ...]
    index: Any


class Kernel(NamedTuple):
    """What is known when a kernel is traced; the sizes are those before padding."""

    plan: Plan
    blocks: Blocks
    queries: int
    keys: int
    group: int  # heads for each key head


class Rows(NamedTuple):
    """The inputs of the backward pass for each query."""

    d_out: Float[Array, "batch queries heads dim"]
    centre: Float[Array, "batch heads queries"]  # the sum over keys of weight times gradient
    log_sum: Float[Array, "batch heads queries"]


def forward(
    plan: Plan, operands: Operands
) -> tuple[Float[Array, "batch queries heads dim"], Float[Array, "batch heads queries"]]:
    """Compute the output, and the log-sum-exp of every query: inf where it sees no key."""
    kernel = _build_kernel(plan, operands.inputs, "forward")
    padded = _pad_operands(kernel, operands)
    query, rows = padded.inputs.query, kernel.blocks.rows
    batch, queries, heads, _ = query.shape
    outputs = [
        _build_position_output(query, rows),
        Output(
            (batch, heads, queries),
            operands.keep_scale.dtype,
            (None, None, rows),
            lambda i, n, b: (b, n, i),
        ),
    ]
    grid = (queries // rows, heads, batch)
    out, log_sum = _call(_forward_kernel, kernel, grid, (padded,), outputs)
    return _cut_padding(out, operands.inputs.query), log_sum[:, :, : kernel.queries]


def backward(
    plan: Plan,
    operands: Operands,
    out: Float[Array, "batch queries heads dim"],
    log_sum: Float[Array, "batch heads queries"],
    d_out: Float[Array, "batch queries heads dim"],
) -> tuple[Array, Array, Array, Array | None]:
    """Compute the gradients of query, key, value and bias."""
    wide = log_sum.dtype
    centre = jnp.einsum("btnd,btnd->bnt", d_out.astype(wide), out.astype(wide))
    rows = Rows(d_out, centre, log_sum)
    (d_query,) = _differentiate_positions(_query_kernel, "query", plan, operands, rows)
    d_key, d_value = _differentiate_positions(_key_kernel, "key", plan, operands, rows)
    d_bias = None
    if operands.inputs.bias is not None:
        d_bias = _differentiate_bias(plan, operands, rows)
    return d_query, d_key, d_value, d_bias


def _differentiate_positions(
    body: Any, name: str, plan: Plan, operands: Operands, rows: Rows
) -> list[Array]:
    """Compute the gradient of the query, or those of key and value."""
    kernel = _build_kernel(plan, operands.inputs, name)
    arguments = _pad_operands(kernel, operands), _pad_rows(kernel, rows)
    of_query = name == "query"
    x, padded = (
        each.inputs.query if of_query else each.inputs.key for each in (operands, arguments[0])
    )
    batch, length, heads, _ = padded.shape
    block = kernel.blocks.rows if of_query else kernel.blocks.keys
    outputs = [_build_position_output(padded, block)] * (1 if of_query else 2)
    results = _call(body, kernel, (length // block, heads, batch), arguments, outputs)
    return [_cut_padding(each, x) for each in results]


def _differentiate_bias(plan: Plan, operands: Operands, rows: Rows) -> Float[Array, "..."]:
    """Compute the gradient of the bias by itself: dead code where nobody asks for it."""
    kernel = _build_kernel(plan, operands.inputs, "bias")
    arguments = _pad_operands(kernel, operands), _pad_rows(kernel, rows)
    bias, padded = operands.inputs.bias, arguments[0].inputs.bias
    assert bias is not None
    assert padded is not None
    batch, heads, queries, keys = padded.shape
    sizes = zip((queries, keys), kernel.blocks[:2], strict=True)
    block = [1 if size == 1 else size_of_block for size, size_of_block in sizes]
    output = Output(padded.shape, bias.dtype, (None, None, *block), lambda i, j, n, b: (b, n, i, j))
    grid = (queries // block[0], keys // block[1], heads, batch)
    (d_bias,) = _call(_bias_kernel, kernel, grid, arguments, [output])
    return d_bias[:, :, : bias.shape[2], : bias.shape[3]]


def _call(
    body: Any, kernel: Kernel, grid: tuple[int, ...], arguments: tuple, outputs: list[Output]
) -> Any:
    """Run a kernel on whole arrays, which are no more than pointers there."""
    varying = jax.typeof(arguments[0].inputs.query).manual_axis_type  # under jax.shard_map
    return pl.pallas_call(
        functools.partial(body, kernel),
        grid=grid,
        out_specs=[pl.BlockSpec(x.block, x.index) for x in outputs],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x in outputs
        ],
        compiler_params=triton.CompilerParams(
            num_warps=kernel.blocks.warps, num_stages=kernel.blocks.stages
        ),
        interpret=kernel.plan.interpret,
        name=body.__name__.strip("_"),
    )(*arguments)


def _build_position_output(x: Float[Array, "batch positions heads dim"], block: int) -> Output:
    """Return an output like x, of which a program writes a block of positions of a head."""
    return Output(x.shape, x.dtype, (None, block, None, x.shape[3]), lambda i, n, b: (b, i, n, 0))


def _cut_padding(
    padded: Float[Array, "batch more heads padded_dim"],
    x: Float[Array, "batch positions heads dim"],
) -> Float[Array, "batch positions heads dim"]:
    return padded[:, : x.shape[1], :, : x.shape[3]]


def _build_kernel(plan: Plan, inputs: Inputs, name: str) -> Kernel:
    queries, heads, dim = inputs.query.shape[1:]
    keys, key_heads = inputs.key.shape[1:3]
    blocks = _choose_blocks(name, inputs.query.dtype.itemsize, dim)
    if plan.static_mask.window is not None:  # its second comparison needs registers
        blocks = _halve_loop(name, blocks)
    if inputs.bias is not None and dim > 128:  # shared memory has no room to load tiles ahead
        blocks = blocks._replace(stages=1)
    return Kernel(plan, blocks, queries, keys, heads // key_heads)


def _choose_blocks(name: str, itemsize: int, dim: int) -> Blocks:
    of_kernel = BLOCKS[name]
    itemsize = min(itemsize, 4)  # float64 is interpreted only
    limits = [limit for size, limit in of_kernel if size == itemsize]
    return of_kernel[itemsize, min((x for x in limits if x >= dim), default=max(limits))]


def _halve_loop(name: str, blocks: Blocks) -> Blocks:
    """Halve the block that the loop of a gradient's kernel goes over."""
    if name == "query":
        return blocks._replace(keys=blocks.keys // 2)
    return blocks._replace(rows=max(blocks.rows // 2, 32)) if name == "key" else blocks


def _pad_operands(kernel: Kernel, operands: Operands) -> Operands:
    """Pad to whole blocks and a power of two of dims; axes of length 1 of bias and mask stay."""
    query, key, value, bias, mask_arrays = operands.inputs
    rows, columns = kernel.blocks[:2]
    query, key, value = (
        _pad_dim(pad_to_multiple(x, 1, block))
        for x, block in ((query, rows), (key, columns), (value, columns))
    )

    def pad_tile(x):
        for axis, block in ((2, rows), (3, columns)):
            x = x if x.shape[axis] == 1 else pad_to_multiple(x, axis, block)
        return x

    bias, mask = (None if x is None else pad_tile(x) for x in (bias, mask_arrays.mask))
    mask_arrays = mask_arrays._replace(mask=mask)
    return operands._replace(inputs=Inputs(query, key, value, bias, mask_arrays))


def _pad_rows(kernel: Kernel, rows: Rows) -> Rows:
    block = kernel.blocks.rows
    d_out = _pad_dim(pad_to_multiple(rows.d_out, 1, block))
    log_sum = pad_to_multiple(rows.log_sum, 2, block, jnp.inf)
    return Rows(d_out, pad_to_multiple(rows.centre, 2, block), log_sum)


def _pad_dim(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return pad_to_multiple(x, 3, _pad_size(x.shape[3]))


def _pad_size(dim: int) -> int:
    return max(SMALLEST_DIM, pl.next_power_of_2(dim))


def _forward_kernel(kernel: Kernel, refs: Operands, out: Any, log_sum: Any) -> None:
    row, pair = _locate_program(kernel.blocks.rows)
    query, wide = _load_positions(refs.inputs.query, pair, row, kernel.blocks.rows), log_sum.dtype

    def add_block(j, carry):
        total, top, sums = carry
        column = j * kernel.blocks.keys
        key, value = _load_key_value(kernel, refs, pair, column)
        logits, keep = _compute_tile(kernel, refs, pair, (query, key), (row, column))
        new_top = jnp.maximum(top, logits.max(axis=1))
        safe = jnp.where(new_top == -jnp.inf, 0, new_top)
        shrink = jnp.exp(top - safe)
        weights = jnp.exp(logits - safe[:, None])
        total = total * shrink + weights.sum(axis=1)
        dropped = jnp.where(keep, weights, 0).astype(value.dtype)
        sums = sums * shrink[:, None] + jnp.dot(dropped, value, preferred_element_type=wide)
        return total, new_top, sums

    initial = _zeros(log_sum), jnp.full(log_sum.shape, -jnp.inf, wide), _zeros(out, wide)
    total, top, sums = lax.fori_loop(*_key_block_range(kernel, row), add_block, initial)
    is_blind = total == 0
    total = jnp.where(is_blind, 1, total)
    out[...] = (sums * (refs.keep_scale[0] / total)[:, None]).astype(out.dtype)
    log_sum[...] = jnp.where(is_blind, jnp.inf, top + jnp.log(total))


def _query_kernel(kernel: Kernel, refs: Operands, rows: Rows, d_query: Any) -> None:
    row, pair = _locate_program(kernel.blocks.rows)
    of_rows = _load_rows(kernel, refs, rows, pair, row)

    def add_block(j, sums):
        column = j * kernel.blocks.keys
        key_value = _load_key_value(kernel, refs, pair, column)
        _, d_logits = _compute_gradient_tile(kernel, refs, pair, of_rows, key_value, (row, column))
        d_logits = d_logits.astype(d_query.dtype)
        return sums + jnp.dot(d_logits, key_value[0], preferred_element_type=sums.dtype)

    initial = _zeros(d_query, refs.keep_scale.dtype)
    sums = lax.fori_loop(*_key_block_range(kernel, row), add_block, initial)
    d_query[...] = (sums * kernel.plan.scale).astype(d_query.dtype)


def _key_kernel(kernel: Kernel, refs: Operands, rows: Rows, d_key: Any, d_value: Any) -> None:
    """Sum over the heads of the group too. Tiles are (keys, queries), as the products need them."""
    column, (batch, key_head) = _locate_program(kernel.blocks.keys)
    first_head = key_head * kernel.group
    key_value = _load_key_value(kernel, refs, (batch, first_head), column)

    def add_block(pair, i, sums):
        row = i * kernel.blocks.rows
        of_rows = _load_rows(kernel, refs, rows, pair, row)
        dropped, d_logits = _compute_gradient_tile(
            kernel, refs, pair, of_rows, key_value, (row, column), is_transposed=True
        )
        parts = ((d_logits, of_rows[0]), (dropped, of_rows[1]))
        return tuple(
            total + jnp.dot(a.astype(b.dtype), b, preferred_element_type=total.dtype)
            for total, (a, b) in zip(sums, parts, strict=True)
        )

    def add_head(n, sums):
        add = functools.partial(add_block, (batch, first_head + n))
        return lax.fori_loop(*_query_block_range(kernel, column), add, sums)

    sums = (_zeros(d_key, refs.keep_scale.dtype),) * 2
    sums = (
        add_head(0, sums) if kernel.group == 1 else lax.fori_loop(0, kernel.group, add_head, sums)
    )
    d_key[...] = (sums[0] * kernel.plan.scale).astype(d_key.dtype)
    d_value[...] = (sums[1] * refs.keep_scale[0]).astype(d_value.dtype)


def _bias_kernel(kernel: Kernel, refs: Operands, rows: Rows, d_bias: Any) -> None:
    """Sum the gradients of the logits over what shares an element of the bias."""
    bias: Any = refs.inputs.bias
    wide = refs.keep_scale.dtype
    batch, queries, heads = refs.inputs.query.shape[:3]
    sizes = (
        batch,
        heads,
        queries // kernel.blocks.rows,
        refs.inputs.key.shape[1] // kernel.blocks.keys,
    )
    program = *(pl.program_id(axis) for axis in (3, 2)), *(pl.program_id(axis) for axis in (0, 1))

    def add_tile(indices, total):
        *pair, i, j = indices
        row, column = i * kernel.blocks.rows, j * kernel.blocks.keys
        of_rows = _load_rows(kernel, refs, rows, tuple(pair), row)
        key_value = _load_key_value(kernel, refs, tuple(pair), column)
        return (
            total
            + _compute_gradient_tile(kernel, refs, tuple(pair), of_rows, key_value, (row, column))[
                1
            ]
        )

    def add_all(indices, total):
        axis = len(indices)
        if axis == len(sizes):
            return add_tile(indices, total)
        if bias.shape[axis] > 1 or sizes[axis] == 1:
            return add_all((*indices, program[axis]), total)
        return lax.fori_loop(0, sizes[axis], lambda n, total: add_all((*indices, n), total), total)

    total = add_all((), jnp.zeros(kernel.blocks[:2], wide))
    for axis in (0, 1):
        total = total.sum(axis=axis, keepdims=True) if d_bias.shape[axis] == 1 else total
    d_bias[...] = total.astype(d_bias.dtype)


def _compute_gradient_tile(
    kernel: Kernel,
    refs: Operands,
    pair: Pair,
    of_rows: tuple[Array, ...],
    key_value: tuple[Array, Array],
    at: Pair,
    *,
    is_transposed: bool = False,
) -> tuple[Float[Array, "_ _"], Float[Array, "_ _"]]:
    """Compute the dropped, unscaled weights of a tile, and the gradient of its logits."""
    query, d_out, centre, log_sum = of_rows
    key, value = key_value
    per_row = (None, slice(None)) if is_transposed else (slice(None), None)
    logits, keep = _compute_tile(kernel, refs, pair, (query, key), at, is_transposed)
    weights = jnp.exp(logits - log_sum[per_row])
    d_dropped = _multiply(d_out, value, log_sum.dtype, is_transposed)
    d_weights = jnp.where(keep, d_dropped, 0) * refs.keep_scale[0]
    return jnp.where(keep, weights, 0), weights * (d_weights - centre[per_row])


def _compute_tile(
    kernel: Kernel,
    refs: Operands,
    pair: Pair,
    query_key: tuple[Array, Array],
    at: Pair,
    is_transposed: bool = False,
) -> tuple[Float[Array, "_ _"], Bool[Array, "_ _"] | bool]:
    """Compute the logits of a tile, -inf where invisible, and which weights dropout keeps."""

    def orient(tile):
        return tile.T if is_transposed else tile

    wide = refs.keep_scale.dtype
    logits = _multiply(*query_key, wide, is_transposed) * kernel.plan.scale
    if refs.inputs.bias is not None:
        logits = logits + orient(_load_tile(kernel, refs.inputs.bias, pair, at).astype(wide))
    visibility = orient(_compute_visibility(kernel, refs, pair, at))
    logits = jnp.where(visibility, logits, -jnp.inf)
    if not kernel.plan.drops:
        return logits, True
    return logits, _draw_keep_tile(kernel, refs, pair, at, is_transposed)


def _multiply(
    by_query: Float[Array, "rows dim"],
    by_key: Float[Array, "keys dim"],
    wide: Any,
    transposed: bool,
) -> Float[Array, "_ _"]:
    a, b = (by_key, by_query) if transposed else (by_query, by_key)
    return jnp.dot(a, b.T, preferred_element_type=wide)


def _compute_visibility(kernel: Kernel, refs: Operands, pair: Pair, at: Pair) -> Bool[Array, "_ _"]:
    rows, keys = (
        first + lax.iota(jnp.int32, size) for first, size in zip(at, kernel.blocks, strict=False)
    )
    mask_arrays = jax.tree.map(
        lambda ref: _load_tile(kernel, ref, pair, at), refs.inputs.mask_arrays
    )
    visibility = (keys < kernel.keys)[None, :]
    masked = compute_visibility(kernel.plan.static_mask, mask_arrays, rows, keys, 2)
    return jnp.broadcast_to(
        visibility if masked is None else visibility & masked, kernel.blocks[:2]
    )


def _draw_keep_tile(
    kernel: Kernel, refs: Operands, pair: Pair, at: Pair, is_transposed: bool
) -> Bool[Array, "_ _"]:
    params = random.MaskParams((refs.words[0], refs.words[1]), refs.words[2])
    sizes, (rows, keys) = (kernel.queries, kernel.keys), kernel.blocks[:2]
    tile, order = ((at[0], rows), (at[1], keys)), {"is_transposed": is_transposed}
    words = random.draw_packed_tile(params, refs.heads[pair], sizes, *tile, in_kernel=True, **order)
    return random.unpack_tile(words, sizes, rows, keys, in_kernel=True, **order)


def _load_positions(
    ref: Any, pair: Pair, first: Int32[Array, ""], size: int
) -> Float[Array, "size dim"]:
    batch, head = pair
    return ref[batch, pl.ds(first, size), head, :]


def _load_key_value(
    kernel: Kernel, refs: Operands, pair: Pair, column: Int32[Array, ""]
) -> tuple[Float[Array, "keys dim"], Float[Array, "keys dim"]]:
    batch, head = pair
    of_key = batch, head // kernel.group
    key, value = (
        _load_positions(ref, of_key, column, kernel.blocks.keys) for ref in refs.inputs[1:3]
    )
    return key, value


def _load_rows(
    kernel: Kernel, refs: Operands, rows: Rows, pair: Pair, row: Int32[Array, ""]
) -> tuple[Array, ...]:
    """Load the query, the gradient of the output, the centre and the log-sum-exp of a block."""
    size = kernel.blocks.rows
    query, d_out = (_load_positions(x, pair, row, size) for x in (refs.inputs.query, rows.d_out))
    centre, log_sum = (x[(*pair, pl.ds(row, size))] for x in rows[1:])
    return query, d_out, centre, log_sum


def _load_tile(kernel: Kernel, ref: Any, pair: Pair, at: Pair) -> Array:
    """Load a tile of a bias, a mask or lengths; an axis of length 1 is shared."""
    index = [0 if size == 1 else n for n, size in zip(pair, ref.shape[:2], strict=True)]
    tile = zip(at, kernel.blocks[:2], ref.shape[2:], strict=True)
    return ref[
        (
            *index,
            *(pl.ds(0 if size == 1 else first, min(size, block)) for first, block, size in tile),
        )
    ]


def _zeros(ref: Any, dtype: Any = None) -> Float[Array, "..."]:
    return jnp.zeros(ref.shape, dtype or ref.dtype)


def _locate_program(size: int) -> tuple[Int32[Array, ""], Pair]:
    """Return the first query or key of this program, and its row of the batch and head."""
    return pl.program_id(0) * size, (pl.program_id(2), pl.program_id(1))


def _key_block_range(kernel: Kernel, row: Int32[Array, ""]) -> BlockRange:
    """Return the range of blocks of keys that the queries from `row` on may see."""
    left, right = _resolve_window(kernel)
    size = kernel.blocks.keys
    low = jnp.maximum(row - left, 0) // size
    high = jnp.minimum(row + kernel.blocks.rows - 1 + right, kernel.keys - 1) // size + 1
    return low, high


def _query_block_range(kernel: Kernel, column: Int32[Array, ""]) -> BlockRange:
    """Return the range of blocks of queries that may see the keys from `column` on."""
    left, right = _resolve_window(kernel)
    size = kernel.blocks.rows
    low = jnp.maximum(column - right, 0) // size
    high = jnp.minimum(column + kernel.blocks.keys - 1 + left, kernel.queries - 1) // size + 1
    return low, high


def _resolve_window(kernel: Kernel) -> tuple[int, int]:
    left, right = kernel.plan.static_mask.window or (kernel.queries, kernel.keys)
    return left, min(right, 0) if kernel.plan.static_mask.is_causal else right
