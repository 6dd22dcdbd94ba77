"""Flash attention with dropout inside the kernel, in Pallas Mosaic: for TPUs.

Forward, the grid goes over the blocks of keys that a block of queries may see, with an online
softmax (Dao et al., "FlashAttention-2", 2023), and drops weights. Backward, one kernel computes the
gradient of the query, one those of the key and the value, and one that of the bias; each computes
the weights and the mask again from the log-sum-exp and the parameters of the mask.

Blocks stream through the innermost axis of the grid and sums stay in scratch memory, so neither
memory nor VMEM depends on the weights. The packed axis of the mask is that of the queries from 32
queries on: the words of 512 x 512 weights are 16 rows of 512, a few registers, and every lane of a
row of words shifts by the same amount. Of blocks of 128 to 1024, those of 512 take few cycles for
each weight (about half of them draw the mask) and leave most of VMEM free.

The kernel is compiled for TPUs from v4 to 7x and run by the TPU interpreter; it has not run on a
TPU. It has no second derivatives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dropout_jax import random
from dropout_jax.attention._kernel_inputs import Operands, Plan, pad_to_multiple

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

BLOCK = 512  # queries, and keys, of a tile at most
LANES = 128
SUBLANES = 32  # of the narrowest dtype, that of the mask; also the queries of a word
ZERO = np.int32(0)  # where x64 is on, 0 in an index map has 64 bits, which Mosaic refuses


class Layout(NamedTuple):
    """The plan, the sizes before padding, and those of a tile."""

    plan: Plan
    batch: int
    heads: int
    group: int  # heads of a key head
    queries: int
    keys: int
    rows: int
    columns: int

    @property
    def row_blocks(self) -> int:
        """How many blocks the queries are."""
        return pl.cdiv(self.queries, self.rows)

    @property
    def column_blocks(self) -> int:
        """How many blocks the keys are."""
        return pl.cdiv(self.keys, self.columns)


class Arrays(NamedTuple):
    """The operands as the kernels want them, with queries and keys in whole blocks."""

    query: Any  # (batch, heads, queries, dim)
    key: Any
    value: Any
    bias: Any
    mask: Any  # int8
    query_lengths: Any  # (batch,)
    key_lengths: Any
    heads: Any  # (batch * heads,)
    words: Any
    keep_scale: Any


class Rows(NamedTuple):
    """The inputs of the backward pass for each query."""

    d_out: Any  # (batch, heads, queries, dim)
    centre: Any  # (batch, heads, 1, queries): the sum over keys of weight times gradient
    log_sum: Any  # the same


class Tile(NamedTuple):
    """The batch row, the head, and the blocks of queries and keys; and whether these may meet."""

    batch: Any
    head: Any
    i: Any
    j: Any
    is_visible: Any


class Walk(NamedTuple):
    """The grid, how many of its last axes add to one block, and the tile at indices of it."""

    grid: tuple[int, ...]
    reductions: int
    locate: Callable[..., Tile]


def forward(
    plan: Plan, operands: Operands
) -> tuple[Float[Array, "batch queries heads dim"], Float[Array, "batch heads queries"]]:
    """Compute attention, and the logarithm of each query's sum of weights, +inf if it has none."""
    layout = _plan_layout(plan, operands)
    arrays = _arrange(layout, operands)
    query, wide = arrays.query, arrays.keep_scale.dtype
    *lead, queries, dim = query.shape
    walk = _walk_keys(layout)
    out, log_sum = _call(
        _forward_kernel,
        layout,
        walk,
        (arrays,),
        outputs=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((*lead, 1, queries), wide),
        ],
        out_specs=[_query_spec(layout, walk, dim), _row_spec(layout, walk)],
        scratch=[(layout.rows, width) for width in (dim, 1, 1)],
    )
    out, log_sum = out[:, :, : layout.queries], log_sum[:, :, 0, : layout.queries]
    return out.swapaxes(1, 2), log_sum


def backward(
    plan: Plan,
    operands: Operands,
    out: Float[Array, "batch queries heads dim"],
    log_sum: Float[Array, "batch heads queries"],
    d_out: Float[Array, "batch queries heads dim"],
) -> tuple[Any, Any, Any, Any]:
    """Compute the gradients of the query, the key, the value and the bias (None without one)."""
    layout = _plan_layout(plan, operands)
    arguments = _arrange(layout, operands), _arrange_rows(layout, operands, out, log_sum, d_out)
    d_query = _compute_query_gradient(layout, arguments)
    d_key, d_value = _compute_key_gradients(layout, arguments)
    bias, d_bias = operands.inputs.bias, None
    if bias is not None:
        padded = _compute_bias_gradient(layout, arguments)
        d_bias = padded[:, :, : bias.shape[2], : bias.shape[3]]
    return (
        d_query[:, :, : layout.queries].swapaxes(1, 2),
        d_key[:, :, : layout.keys].swapaxes(1, 2),
        d_value[:, :, : layout.keys].swapaxes(1, 2),
        d_bias,
    )


def _plan_layout(plan: Plan, operands: Operands) -> Layout:
    batch, queries, heads, _ = operands.inputs.query.shape
    _, keys, key_heads, _ = operands.inputs.key.shape
    # Few queries, as in decoding, are one block that needs no whole lanes.
    rows = _choose_block(queries, LANES if queries > LANES else SUBLANES)
    columns = _choose_block(keys, LANES)
    return Layout(plan, batch, heads, heads // key_heads, queries, keys, rows, columns)


def _choose_block(size: int, multiple: int) -> int:
    """Choose the block of which the fewest make up the size, with little padding."""
    return pl.cdiv(pl.cdiv(size, pl.cdiv(size, BLOCK)), multiple) * multiple


def _arrange(layout: Layout, operands: Operands) -> Arrays:
    query, key, value, bias, (mask, query_lengths, key_lengths) = operands.inputs
    return Arrays(
        pad_to_multiple(query.swapaxes(1, 2), 2, layout.rows),
        pad_to_multiple(key.swapaxes(1, 2), 2, layout.columns),
        pad_to_multiple(value.swapaxes(1, 2), 2, layout.columns),
        None if bias is None else _pad_tiles(layout, bias),
        None if mask is None else _pad_tiles(layout, mask.astype(jnp.int8)),
        None if query_lengths is None else query_lengths.reshape(-1),
        None if key_lengths is None else key_lengths.reshape(-1),
        operands.heads.reshape(-1),
        operands.words,
        operands.keep_scale,
    )


def _arrange_rows(layout: Layout, operands: Operands, out: Any, log_sum: Any, d_out: Any) -> Rows:
    wide = operands.keep_scale.dtype
    centre = jnp.einsum("btnd,btnd->bnt", d_out.astype(wide), out.astype(wide))
    return Rows(
        pad_to_multiple(d_out.swapaxes(1, 2), 2, layout.rows),
        pad_to_multiple(centre, 2, layout.rows)[:, :, None],
        pad_to_multiple(log_sum.astype(wide), 2, layout.rows, jnp.inf)[:, :, None],
    )


def _pad_tiles(layout: Layout, x: Any) -> Any:
    """Pad a bias or a mask; an axis of length 1 is shared and stays."""
    for axis, multiple in ((2, layout.rows), (3, layout.columns)):
        x = x if x.shape[axis] == 1 else pad_to_multiple(x, axis, multiple)
    return x


def _compute_query_gradient(layout: Layout, arguments: tuple[Arrays, Rows]) -> Any:
    query, walk = arguments[0].query, _walk_keys(layout)
    (d_query,) = _call(
        _query_kernel,
        layout,
        walk,
        arguments,
        outputs=[jax.ShapeDtypeStruct(query.shape, query.dtype)],
        out_specs=[_query_spec(layout, walk, query.shape[3])],
        scratch=[(layout.rows, query.shape[3])],
    )
    return d_query


def _compute_key_gradients(layout: Layout, arguments: tuple[Arrays, Rows]) -> Any:
    key, walk = arguments[0].key, _walk_queries(layout)
    return _call(
        _key_kernel,
        layout,
        walk,
        arguments,
        outputs=[jax.ShapeDtypeStruct(key.shape, key.dtype)] * 2,
        out_specs=[_key_spec(layout, walk, key.shape[3])] * 2,
        scratch=[(layout.columns, key.shape[3])] * 2,
    )


def _compute_bias_gradient(layout: Layout, arguments: tuple[Arrays, Rows]) -> Any:
    bias = arguments[0].bias
    walk = _walk_bias(layout, bias.shape)
    (d_bias,) = _call(
        _bias_kernel,
        layout,
        walk,
        arguments,
        outputs=[jax.ShapeDtypeStruct(bias.shape, bias.dtype)],
        out_specs=[_tile_spec(layout, walk, bias)],
        scratch=[_tile_shape(layout, bias)],
    )
    return d_bias


def _call(
    kernel: Callable,
    layout: Layout,
    walk: Walk,
    arguments: tuple,
    *,
    outputs: list[Any],
    out_specs: list[Any],
    scratch: list[tuple[int, int]],
) -> Any:
    parallel = [pltpu.PARALLEL] * (len(walk.grid) - walk.reductions)
    semantics = (*parallel, *[pltpu.ARBITRARY] * walk.reductions)
    varying = jax.typeof(arguments[0].query).manual_axis_type  # under jax.shard_map
    return pl.pallas_call(
        functools.partial(kernel, layout, walk),
        grid=walk.grid,
        in_specs=_build_specs(layout, walk, arguments),
        out_specs=out_specs,
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x in outputs
        ],
        scratch_shapes=[pltpu.VMEM(shape, arguments[0].keep_scale.dtype) for shape in scratch],
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        interpret=layout.plan.interpret,
    )(*arguments)


def _walk_keys(layout: Layout) -> Walk:
    """For every block of queries, go over the blocks of keys that it may see."""
    low, high = _key_block_range(layout, np.arange(layout.row_blocks, dtype=np.int32), np)

    def locate(batch, head, i, step):
        low, high = _key_block_range(layout, i, jnp)
        j = low + step
        return Tile(batch, head, i, jnp.minimum(j, layout.column_blocks - 1), j < high)

    grid = layout.batch, layout.heads, layout.row_blocks, max(int((high - low).max()), 1)
    return Walk(grid, 1, locate)


def _walk_queries(layout: Layout) -> Walk:
    """For every block of keys, go over the heads, and the blocks of queries, that may see it."""
    low, high = _query_block_range(layout, np.arange(layout.column_blocks, dtype=np.int32), np)

    def locate(batch, key_head, j, member, step):
        low, high = _query_block_range(layout, j, jnp)
        head, i = key_head * layout.group + member, low + step
        return Tile(batch, head, jnp.minimum(i, layout.row_blocks - 1), j, i < high)

    lead = layout.batch, layout.heads // layout.group, layout.column_blocks
    return Walk((*lead, layout.group, max(int((high - low).max()), 1)), 2, locate)


def _walk_bias(layout: Layout, shape: tuple[int, ...]) -> Walk:
    """For every block of the bias, go over the axes that share it."""
    sizes = layout.batch, layout.heads, layout.row_blocks, layout.column_blocks
    order = sorted(range(4), key=lambda axis: shape[axis] == 1)

    def locate(*indices):
        batch, head, i, j = (indices[order.index(axis)] for axis in range(4))
        low, high = _key_block_range(layout, i, jnp)
        return Tile(batch, head, i, j, (low <= j) & (j < high))

    return Walk(tuple(sizes[axis] for axis in order), shape.count(1), locate)


def _key_block_range(layout: Layout, i: Any, xp: Any) -> tuple[Any, Any]:
    """Return the range of blocks of keys that a block of queries may see."""
    left, right = _resolve_window(layout)
    row = i * layout.rows
    low = xp.maximum(row - left, 0)
    last = xp.minimum(row + layout.rows - 1 + right, layout.keys - 1)
    return _divide(low, layout.columns), _divide(last, layout.columns) + 1


def _query_block_range(layout: Layout, j: Any, xp: Any) -> tuple[Any, Any]:
    """Return the range of blocks of queries that may see a block of keys."""
    left, right = _resolve_window(layout)
    column = j * layout.columns
    low = xp.maximum(column - right, 0)
    last = xp.minimum(column + layout.columns - 1 + left, layout.queries - 1)
    return _divide(low, layout.rows), _divide(last, layout.rows) + 1


def _divide(x: Any, size: int) -> Any:
    """Divide numbers that are not negative.

    (`//` of a signed number looks at its sign, and Mosaic asks the machine's own chip how.)
    """
    return (x.astype(np.uint32) // np.uint32(size)).astype(np.int32)


def _resolve_window(layout: Layout) -> tuple[int, int]:
    left, right = layout.plan.static_mask.window or (layout.queries, layout.keys)
    return left, min(right, 0) if layout.plan.static_mask.is_causal else right


def _build_specs(layout: Layout, walk: Walk, arguments: tuple) -> list[Any]:
    arrays, *rows = arguments
    dim = arrays.query.shape[3]
    query, row = _query_spec(layout, walk, dim), _row_spec(layout, walk)
    key = _key_spec(layout, walk, dim)
    tiles = [None if x is None else _tile_spec(layout, walk, x) for x in arrays[3:5]]
    scalars = [None if x is None else _scalar_spec(x) for x in arrays[5:]]
    return [Arrays(query, key, key, *tiles, *scalars), *(Rows(query, row, row) for _ in rows)]


def _scalar_spec(x: Any) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda *_: (ZERO,), memory_space=pltpu.SMEM)


def _query_spec(layout: Layout, walk: Walk, dim: int) -> pl.BlockSpec:
    def index(*indices):
        tile = walk.locate(*indices)
        return tile.batch, tile.head, tile.i, ZERO

    return pl.BlockSpec((None, None, layout.rows, dim), index)


def _key_spec(layout: Layout, walk: Walk, dim: int) -> pl.BlockSpec:
    def index(*indices):
        tile = walk.locate(*indices)
        return tile.batch, _divide(tile.head, layout.group), tile.j, ZERO

    return pl.BlockSpec((None, None, layout.columns, dim), index)


def _row_spec(layout: Layout, walk: Walk) -> pl.BlockSpec:
    def index(*indices):
        tile = walk.locate(*indices)
        return tile.batch, tile.head, ZERO, tile.i

    return pl.BlockSpec((None, None, 1, layout.rows), index)


def _tile_spec(layout: Layout, walk: Walk, x: Any) -> pl.BlockSpec:
    def index(*indices):
        tile = walk.locate(*indices)
        return tuple(ZERO if size == 1 else at for size, at in zip(x.shape, tile[:4], strict=True))

    return pl.BlockSpec((None, None, *_tile_shape(layout, x)), index)


def _tile_shape(layout: Layout, x: Any) -> tuple[int, int]:
    """Return the shape of a block of a bias or a mask; an axis of length 1 is shared."""
    rows, columns = x.shape[2:]
    return 1 if rows == 1 else layout.rows, 1 if columns == 1 else layout.columns


def _forward_kernel(
    layout: Layout,
    walk: Walk,
    refs: Arrays,
    out: Any,
    log_sum: Any,
    sums: Any,
    top: Any,
    total: Any,
) -> None:
    tile, is_first, is_last = _enter(layout, walk, refs)

    @pl.when(is_first)
    def _():
        sums[...], total[...] = jnp.zeros_like(sums), jnp.zeros_like(total)
        top[...] = jnp.full_like(top, -jnp.inf)

    @pl.when(tile.is_visible)
    def _():
        logits = _compute_logits(layout, refs, tile)
        new_top = jnp.maximum(top[...], logits.max(axis=1, keepdims=True))
        safe = jnp.where(new_top == -jnp.inf, 0, new_top)
        shrink, weights = jnp.exp(top[...] - safe), jnp.exp(logits - safe)
        dropped = _drop(layout, refs, tile)(weights)
        sums[...] = sums[...] * shrink + _multiply(dropped, refs.value[...], (1, 0), sums.dtype)
        total[...] = total[...] * shrink + weights.sum(axis=1, keepdims=True)
        top[...] = new_top

    @pl.when(is_last)
    def _():
        is_blind = total[...] == 0
        safe = jnp.where(is_blind, 1, total[...])
        out[...] = (sums[...] * (refs.keep_scale[0] / safe)).astype(out.dtype)
        log_sum[...] = _to_row(jnp.where(is_blind, jnp.inf, top[...] + jnp.log(safe)))


def _query_kernel(
    layout: Layout, walk: Walk, refs: Arrays, rows: Rows, d_query: Any, sums: Any
) -> None:
    tile, is_first, is_last = _enter(layout, walk, refs)

    @pl.when(is_first)
    def _():
        sums[...] = jnp.zeros_like(sums)

    @pl.when(tile.is_visible)
    def _():
        _, d_logits = _compute_gradient_tile(layout, refs, rows, tile)
        sums[...] += _multiply(d_logits, refs.key[...], (1, 0), sums.dtype)

    @pl.when(is_last)
    def _():
        d_query[...] = (sums[...] * layout.plan.scale).astype(d_query.dtype)


def _key_kernel(
    layout: Layout,
    walk: Walk,
    refs: Arrays,
    rows: Rows,
    d_key: Any,
    d_value: Any,
    key_sums: Any,
    value_sums: Any,
) -> None:
    tile, is_first, is_last = _enter(layout, walk, refs)

    @pl.when(is_first)
    def _():
        key_sums[...] = jnp.zeros_like(key_sums)
        value_sums[...] = jnp.zeros_like(value_sums)

    @pl.when(tile.is_visible)
    def _():
        dropped, d_logits = _compute_gradient_tile(layout, refs, rows, tile)
        key_sums[...] += _multiply(d_logits, refs.query[...], (0, 0), key_sums.dtype)
        value_sums[...] += _multiply(dropped, rows.d_out[...], (0, 0), value_sums.dtype)

    @pl.when(is_last)
    def _():
        d_key[...] = (key_sums[...] * layout.plan.scale).astype(d_key.dtype)
        d_value[...] = (value_sums[...] * refs.keep_scale[0]).astype(d_value.dtype)


def _bias_kernel(
    layout: Layout, walk: Walk, refs: Arrays, rows: Rows, d_bias: Any, sums: Any
) -> None:
    tile, is_first, is_last = _enter(layout, walk, refs)

    @pl.when(is_first)
    def _():
        sums[...] = jnp.zeros_like(sums)

    @pl.when(tile.is_visible)
    def _():
        _, d_logits = _compute_gradient_tile(layout, refs, rows, tile)
        for axis in (0, 1):
            if sums.shape[axis] == 1:
                d_logits = d_logits.sum(axis=axis, keepdims=True)
        sums[...] += d_logits

    @pl.when(is_last)
    def _():
        d_bias[...] = sums[...].astype(d_bias.dtype)


def _enter(layout: Layout, walk: Walk, refs: Arrays) -> tuple[Tile, Any, Any]:
    """Return the tile of this step, and whether it is the first and the last of its block."""
    indices = [pl.program_id(axis) for axis in range(len(walk.grid))]
    tile = walk.locate(*indices)
    is_first = is_last = True
    for axis in range(len(indices) - walk.reductions, len(indices)):
        is_first &= indices[axis] == 0
        is_last &= indices[axis] == walk.grid[axis] - 1
    is_visible = tile.is_visible
    if refs.query_lengths is not None:
        is_visible &= tile.i * layout.rows < refs.query_lengths[tile.batch]
    if refs.key_lengths is not None:
        is_visible &= tile.j * layout.columns < refs.key_lengths[tile.batch]
    return tile._replace(is_visible=is_visible), is_first, is_last


def _compute_gradient_tile(
    layout: Layout, refs: Arrays, rows: Rows, tile: Tile
) -> tuple[Float[Array, "rows columns"], Float[Array, "rows columns"]]:
    """Compute the dropped, unscaled weights of a tile, and the gradient of its logits."""
    logits = _compute_logits(layout, refs, tile)
    weights = jnp.exp(logits - _to_column(rows.log_sum[...]))
    d_dropped = _multiply(rows.d_out[...], refs.value[...], (1, 1), logits.dtype)
    drop = _drop(layout, refs, tile)
    d_weights = drop(d_dropped) * refs.keep_scale[0]
    return drop(weights), weights * (d_weights - _to_column(rows.centre[...]))


def _compute_logits(layout: Layout, refs: Arrays, tile: Tile) -> Float[Array, "rows columns"]:
    """Compute the logits of a tile, -inf where a key is invisible."""
    wide = refs.keep_scale.dtype
    logits = _multiply(refs.query[...], refs.key[...], (1, 1), wide) * layout.plan.scale
    if refs.bias is not None:
        logits = logits + refs.bias[...].astype(wide)
    visibility = _compute_visibility(layout, refs, tile)
    return logits if visibility is None else jnp.where(visibility, logits, -jnp.inf)


def _compute_visibility(
    layout: Layout, refs: Arrays, tile: Tile
) -> Bool[Array, "rows columns"] | None:
    """Compute `compute_visibility` of a tile from arrays of two axes, as Mosaic wants them."""
    shape = layout.rows, layout.columns
    row, column = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    first_row, first_column = tile.i * layout.rows, tile.j * layout.columns
    is_causal, window = layout.plan.static_mask
    left, right = _resolve_window(layout)
    parts = []
    if is_causal or window is not None:
        parts.append(column - row <= right + first_row - first_column)
    if window is not None:
        parts.append(column - row >= first_row - first_column - left)
    if refs.query_lengths is not None:
        parts.append(row < refs.query_lengths[tile.batch] - first_row)
    if refs.key_lengths is not None or layout.keys % layout.columns:
        last = layout.keys if refs.key_lengths is None else refs.key_lengths[tile.batch]
        parts.append(column < jnp.minimum(last, layout.keys) - first_column)
    if refs.mask is not None:
        parts.append(jnp.broadcast_to(refs.mask[...].astype(jnp.int32), shape) != 0)
    return functools.reduce(jnp.logical_and, parts) if parts else None


def _drop(layout: Layout, refs: Arrays, tile: Tile) -> Callable:
    """Return the function that drops elements of this tile, without the scale."""
    if not layout.plan.drops:
        return lambda x: x
    head = refs.heads[tile.batch * layout.heads + tile.head]
    params = random.MaskParams((refs.words[0], refs.words[1]), refs.words[2])
    sizes, rows, columns = (layout.queries, layout.keys), layout.rows, layout.columns
    # Unsigned, as `//` of a signed number looks at its sign.
    first_row, first_column = (x.astype(jnp.uint32) for x in (tile.i * rows, tile.j * columns))
    packed = random.draw_packed_tile(
        params, head, sizes, (first_row, rows), (first_column, columns), in_kernel=True
    )
    keep = random.unpack_tile(packed, sizes, rows, columns, in_kernel=True)
    return lambda x: jnp.where(keep, x, 0)


def _multiply(a: Any, b: Any, axes: tuple[int, int], wide: Any) -> Float[Array, "_ _"]:
    """Multiply along an axis of each, in the dtype of b."""
    return lax.dot_general(
        a.astype(b.dtype),
        b,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=_choose_precision(b.dtype),
        preferred_element_type=wide,
    )


def _choose_precision(dtype: Any) -> lax.Precision:
    """Follow jax.default_matmul_precision as far as Mosaic can.

    It has one pass or full float32, and no choice for narrower dtypes, whose products are exact.
    """
    one_pass = None, "default", "fastest", "bfloat16"
    if dtype != jnp.float32 or jax.default_matmul_precision.value in one_pass:
        return lax.Precision.DEFAULT
    return lax.Precision.HIGHEST


def _to_row(x: Float[Array, "rows 1"]) -> Float[Array, "1 rows"]:
    return x.T


def _to_column(x: Float[Array, "1 rows"]) -> Float[Array, "rows 1"]:
    return x.T
