"""dot_product_attention: check its arguments and choose its implementation."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from dropout_jax import _validation, ops, random
from dropout_jax.attention import _blockwise, _naive
from dropout_jax.attention._inputs import (
    Dropout,
    Inputs,
    MaskArrays,
    StaticMask,
    compute_visibility,
    is_symbolic,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Shaped


def _attend_in_kernel(*arguments: Any) -> tuple[Float[Array, "batch queries heads dim"], None]:
    from dropout_jax.attention import _kernel  # slow to import

    return _kernel.attend(*arguments)


IMPLEMENTATIONS = {
    "naive": _naive.attend,
    "blockwise": _blockwise.attend,
    "kernel": _attend_in_kernel,
}

ENVIRONMENT = "DROPOUT_JAX_ATTENTION"  # names the implementation where no argument does
MAX_NAIVE_QUERIES = 64  # the naive implementation is the default up to this many


class _Required:
    def __repr__(self) -> str:
        return "<required unless dropout_rate=0.0>"


_REQUIRED = _Required()


class Choice(NamedTuple):
    """An implementation of attention, and why it was chosen."""

    implementation: str
    reason: str


def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: ArrayLike | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | Sequence[int] | None = None,
    key_value_seq_lengths: ArrayLike | Sequence[int] | None = None,
    local_window_size: ArrayLike | Sequence[int] | None = None,
    dropout_rate: ArrayLike = 0.0,
    dropout_key: jax.Array | _Required | None = _REQUIRED,
    dropout_row_offset: ArrayLike | None = None,
    dropout_broadcast_dims: Sequence[int] = (),
    implementation: str | None = None,
    return_residual: bool = False,
) -> Any:
    """Compute attention with dropout on the weights, in memory linear in the length.

    Formula: dropout(softmax(scale * query . key + bias)) . value, for each head. Every
    implementation drops the weights that
    `keep_mask(dropout_key, dropout_rate, (batch, heads, queries, keys))` drops, and divides the
    others by 1 - rate.

    Args:
      query: (batch, queries, heads, dim), or without the batch; float32, bfloat16, float16 or
        float64.
      key: (batch, keys, key heads, dim), of the dtype of the query. The number of heads is a
        multiple of the number of key heads, as in grouped-query attention.
      value: of the shape and dtype of the key.
      bias: added to the scaled logits; broadcasts to (batch, heads, queries, keys).
      mask: bool, True is visible; broadcasts to (batch, heads, queries, keys).
      scale: of the logits, a number or a scalar array, traced or not; None is 1 / sqrt(dim). An
        array is multiplied with the query, in the query's dtype.
      is_causal: whether query i sees only keys 0 to i.
      query_seq_lengths: (batch,) integers; queries at and after this position give zeros.
      key_value_seq_lengths: (batch,) integers; keys at and after this position are invisible.
      local_window_size: (left, right), or one integer for both: query i sees keys i - left to
        i + right.
      dropout_rate: the probability of dropping a weight, in [0, 1]; a number or a scalar array,
        traced or not.
      dropout_key: one PRNG key: training. None: evaluation. Required unless dropout_rate is 0.
      dropout_row_offset: the index in a larger batch of the first row of this one, an integer,
        traced or not. A part of a batch then drops the same weights as in the batch.
      dropout_broadcast_dims: axes of (batch, heads, queries, keys) along which one decision is
        shared: of 0, for all rows of the batch, and 1, for all heads.
      implementation: "naive" keeps all weights in memory; "blockwise" keeps blocks of them, on any
        backend; "kernel" is a kernel for the platform that the program is lowered for: Triton on a
        GPU, Mosaic on a TPU (compiled, never run), an interpreter on a CPU. It is the fastest on a
        GPU and has neither forward mode nor second derivatives. None chooses one of the first two,
        unless the environment variable DROPOUT_JAX_ATTENTION names one, and
        `attention_implementation` reports which. (The gradient of a bias of the size of all weights
        needs the memory of all weights.) In programs of jax.export, batch and heads may be
        symbolic, and with "naive", the default there, the lengths too. "xla" is None without the
        environment variable.
      return_residual: whether to return (output, residual). The residual is the log-sum-exp of the
        logits of each query over the keys that it sees: (batch, queries, heads), -inf where it sees
        none. "kernel" has none.

    Returns:
      An array of the shape and dtype of the query. Logits, softmax and sums are computed in float32
      (float64 for float64). A query that sees no key gives zeros, with zero gradients. The content
      of a key that no query sees, such as NaN in padding, has no effect. A traced rate outside
      [0, 1] gives NaN.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.
      NotImplementedError: the implementation named by `implementation` does not support the call.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017. The arguments are those of
      `jax.nn.dot_product_attention`, which has no dropout, and which gives a query that sees no key
      the mean of all values. Dao et al., "FlashAttention", NeurIPS 2022, for recomputing the
      weights in the backward pass.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import dot_product_attention
      >>> q, k, v = jnp.linspace(-1, 1, 3 * 2 * 64 * 4 * 8).reshape(3, 2, 64, 4, 8)
      >>> y = dot_product_attention(
      ...     q, k, v, is_causal=True, dropout_rate=0.1, dropout_key=jax.random.key(1))
      >>> y.shape
      (2, 64, 4, 8)
    """
    rate = _validation.check_rate(dropout_rate, "dropout_rate")
    if dropout_key is _REQUIRED:
        dropout_key = _require_rate_zero(rate)
    dropout_key = _validation.check_key(dropout_key, "dropout_key")
    inputs = _check_inputs(query, key, value, bias, mask, query_seq_lengths, key_value_seq_lengths)
    queries, keys = inputs.query.shape[1], inputs.key.shape[1]
    window = _check_window(local_window_size, queries, keys)
    static_mask = StaticMask(_validation.check_flag(is_causal, "is_causal"), window)
    inputs, scale = _check_scale(scale, inputs)
    returns_residual = _validation.check_flag(return_residual, "return_residual")
    if inputs.query.size == 0 or inputs.key.size == 0:
        out, residual = jnp.zeros_like(inputs.query), jnp.full(inputs.query.shape[:3], -jnp.inf)
        return _reshape_results(query, out, residual if returns_residual else None)
    weights = (*inputs.query.shape[::2], queries, keys)
    shared = _check_broadcast_dims(dropout_broadcast_dims)
    offset = random.check_row_offset(dropout_row_offset, weights, shared, "dropout_row_offset")
    dropout = None
    if dropout_key is not None and not ops.keeps_everything(rate):
        dropout = Dropout(dropout_key, random.rate_array(rate), offset, shared)
    choice = attention_implementation(*inputs[:2], implementation=implementation)
    _refuse_symbolic_shapes(choice.implementation, inputs)
    attend = functools.partial(_attend, _specify(choice, inputs), scale, static_mask)
    if not returns_residual:
        out = ops.with_type_of(inputs.query, lambda *args: attend(*args)[0])(inputs, dropout)
        return _reshape_results(query, out, None)
    _refuse_residual(choice.implementation)
    both = ops.with_shardings_of((inputs.query, inputs.query[..., 0]), attend)
    return _reshape_results(query, *both(inputs, dropout))


def _reshape_results(
    query: ArrayLike, out: jax.Array, residual: jax.Array | None
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return the results without the batch if the query has none; the residual if there is one."""
    out = out.reshape(jnp.shape(query))
    if residual is None:
        return out
    return out, residual.astype(out.dtype).reshape(jnp.shape(query)[:-1])


def _refuse_residual(implementation: str) -> None:
    if implementation == "kernel":
        raise NotImplementedError(
            "implementation='kernel' does not support return_residual=True. Pass "
            "implementation='blockwise'."
        )


def _check_scale(scale: ArrayLike | None, inputs: Inputs) -> tuple[Inputs, float]:
    """Return the inputs and a Python number: an array is multiplied with the query."""
    if scale is None:
        return inputs, _default_scale(inputs.query.shape[-1])
    if isinstance(scale, jax.Array | np.ndarray):
        factor = _validation.check_scalar(scale, "scale")
        query = ops.scale_array(inputs.query, factor.astype(ops.compute_dtype(inputs.query)))
        return inputs._replace(query=query), 1.0
    return inputs, _validation.check_number(scale, "scale")


def _check_broadcast_dims(values: Sequence[int]) -> tuple[int, ...]:
    axes = _validation.check_axes(values, 4, "dropout_broadcast_dims")
    if not set(axes) <= {0, 1}:
        _validation.fail(
            ValueError,
            "dropout_broadcast_dims",
            values,
            "of 0 (the batch) and 1 (the heads)",
            "Pass (0, 1) for one mask for all rows and heads.",
        )
    return axes


def _refuse_symbolic_shapes(implementation: str, inputs: Inputs) -> None:
    """Refuse what an implementation cannot export: blockwise loops over blocks of known lengths."""
    lengths = inputs.query.shape[1], inputs.key.shape[1]
    sizes = {"naive": (), "blockwise": lengths}.get(
        implementation, (*inputs.query.shape, *inputs.key.shape)
    )
    if is_symbolic(*sizes):
        what = "a symbolic length" if implementation == "blockwise" else "any symbolic size"
        raise NotImplementedError(
            f"implementation={implementation!r} does not support {what}, and the query and the key "
            f"are of {inputs.query.shape} and {inputs.key.shape}. Pass implementation=None."
        )


def _specify(choice: Choice, inputs: Inputs) -> tuple[Any, ...]:
    """Return the name of the implementation and the options that it alone has."""
    if choice.implementation in ("naive", "blockwise"):
        return (choice.implementation,)
    from dropout_jax.attention import _partition  # slow to import

    return choice.implementation, _partition.find_explicit_axes(inputs.query)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _attend(
    implementation: tuple[Any, ...],
    scale: float,
    static_mask: StaticMask,
    inputs: Inputs,
    dropout: Dropout | None,
) -> tuple[Float[Array, "batch queries heads dim"], Float[Array, "batch queries heads"] | None]:
    inputs = _zero_invisible(static_mask, inputs)
    name, *options = implementation
    return IMPLEMENTATIONS[name](inputs, scale, static_mask, dropout, *options)


@functools.partial(jax.jit, static_argnums=0)
def _zero_invisible(static_mask: StaticMask, inputs: Inputs) -> Inputs:
    """Zero the queries that see no key and the keys that no query sees: 0 times NaN is NaN."""
    query, key, value, _, mask_arrays = inputs
    rows, keys = (jnp.arange(x.shape[1], dtype=jnp.int32) for x in (query, key))
    static_visible = _find_visible_keys(static_mask, query.shape[1], key.shape[1])
    if static_visible is None and all(x is None for x in mask_arrays):
        return inputs
    row_sees, key_visible = (jnp.ones((1, x.size), bool) for x in (rows, keys))
    if static_visible is not None:
        key_visible = static_visible[None]
    if mask_arrays.query_lengths is not None:
        row_sees = row_sees & (rows[None] < mask_arrays.query_lengths[:, 0, 0])
    if mask_arrays.key_lengths is not None:
        key_visible = key_visible & (keys[None] < mask_arrays.key_lengths[:, 0, 0])
    if mask_arrays.mask is not None:
        visibility = compute_visibility(static_mask, mask_arrays, rows, keys, 4)
        assert visibility is not None
        key_visible = key_visible & visibility.any(axis=(1, 2))
        row_sees = row_sees & visibility.any(axis=(1, 3))
    return inputs._replace(
        query=_zero_unless(row_sees, query),
        key=_zero_unless(key_visible, key),
        value=_zero_unless(key_visible, value),
    )


def _find_visible_keys(
    static_mask: StaticMask, queries: int, keys: int
) -> Bool[Array, " keys"] | None:
    """Find the keys that any query may see by the static mask; None is all of them."""
    positions = jnp.arange(keys, dtype=jnp.int32)
    if is_symbolic(queries, keys):
        rows = jnp.arange(queries, dtype=jnp.int32)
        none = MaskArrays(None, None, None)
        visibility = compute_visibility(static_mask, none, rows, positions, 2)
        return None if visibility is None else visibility.any(axis=0)
    low, high = static_mask.key_range(0, queries - 1, keys)
    return None if high - low == keys else (low <= positions) & (positions < high)


def _zero_unless(
    condition: Bool[Array, "#batch positions"], x: Float[Array, "batch positions heads dim"]
) -> Float[Array, "batch positions heads dim"]:
    return jnp.where(condition[:, :, None, None], x, jnp.zeros_like(x))


def _default_scale(dim: int) -> float:
    if is_symbolic(dim):
        remedy = "Pass scale, a number, which has no default then."
        _validation.fail(ValueError, "query.shape[-1]", dim, "a number, not symbolic", remedy)
    return max(dim, 1) ** -0.5


def _require_rate_zero(rate: float | jax.Array) -> None:
    """Return the key of a call without dropout_key, None, which is right only at rate 0."""
    if not isinstance(rate, Tracer) and float(rate) == 0:
        return
    raise TypeError(
        f"dropout_key is missing and dropout_rate={rate!r}: it must be one PRNG key (training) or "
        "None (evaluation). Pass dropout_key=jax.random.key(seed), or dropout_key=None."
    )


def attention_implementation(
    query: ArrayLike | jax.ShapeDtypeStruct,
    key: ArrayLike | jax.ShapeDtypeStruct,
    *,
    implementation: str | None = None,
) -> Choice:
    """Report which implementation `dot_product_attention` chooses for these shapes, and why.

    Formula: what DROPOUT_JAX_ATTENTION names if it is set, else naive up to 64 queries and for
    symbolic lengths (jax.export), else blockwise. On a GPU "kernel" is faster than both, and is not
    chosen because it has neither forward mode nor second derivatives.

    Args:
      query: the query, or a `jax.ShapeDtypeStruct` of its shape and dtype.
      key: the key, or a `jax.ShapeDtypeStruct`.
      implementation: as in `dot_product_attention`; a name is returned unchanged.

    Returns:
      (implementation, reason), two strings.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import attention_implementation
      >>> x = jax.ShapeDtypeStruct((8, 2048, 8, 64), jnp.float32)
      >>> attention_implementation(x, x).implementation
      'blockwise'
    """
    is_xla = implementation == "xla"
    by_argument = "implementation", None if is_xla else implementation, "Pass None."
    variable = None if is_xla else os.getenv(ENVIRONMENT)
    by_environment = ENVIRONMENT, variable, "Unset the environment variable."
    for name, value, remedy in (by_argument, by_environment):
        if value is not None:
            if value not in IMPLEMENTATIONS:
                allowed = f"None or one of {', '.join(map(repr, IMPLEMENTATIONS))}"
                _validation.fail(ValueError, name, value, allowed, remedy)
            return Choice(value, f"{name} names it")
    queries, keys = jnp.shape(query)[-3], jnp.shape(key)[-3]
    if is_symbolic(queries, keys):
        reason = f"blocks need known lengths, and those of {queries} queries or {keys} keys are not"
        return Choice("naive", reason)
    if queries <= MAX_NAIVE_QUERIES:
        return Choice("naive", f"{queries} queries are at most one block, so blocks save no memory")
    reason = f"it does not keep {queries} x {keys} weights per head in memory"
    if jax.default_backend() != "cpu":
        reason += (
            "; 'kernel' is faster where neither forward mode nor second derivatives are needed"
        )
    return Choice("blockwise", reason)


def _check_inputs(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None,
    mask: ArrayLike | None,
    query_lengths: ArrayLike | Sequence[int] | None,
    key_lengths: ArrayLike | Sequence[int] | None,
) -> Inputs:
    query, key, value = (
        _validation.check_real_array(x, name)
        for x, name in ((query, "query"), (key, "key"), (value, "value"))
    )
    layout = "(batch, positions, heads, dim) or (positions, heads, dim)"
    _validation.check_ndim(query, 3, 4, "query", layout)
    if query.ndim == key.ndim == 3:
        query, key, value = query[None], key[None], value[None]
    _validation.check_attention_shapes(query, key)
    _validation.check_same_shape_and_dtype(value, key, "value", "key")
    weights = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    if bias is not None:
        bias = _expand_to_four_axes(_validation.check_broadcastable(bias, weights, "bias"))
    if mask is not None:
        mask = _expand_to_four_axes(_validation.check_mask(mask, weights, "mask", of="the weights"))
    lengths = [
        None
        if x is None
        else _validation.check_lengths(x, query.shape[0], name)[:, None, None, None]
        for x, name in (
            (query_lengths, "query_seq_lengths"),
            (key_lengths, "key_value_seq_lengths"),
        )
    ]
    return Inputs(query, key, value, bias, MaskArrays(mask, *lengths))


def _expand_to_four_axes(x: Shaped[Array, "..."]) -> Shaped[Array, "batch heads queries keys"]:
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _check_window(size: Any, queries: int, keys: int) -> tuple[int, int] | None:
    if size is None:
        return None
    left, right = _validation.check_window(size)
    if is_symbolic(queries, keys):
        queries = keys = 2**30
    return min(left, queries), min(right, keys)  # clipped, so that no sum overflows
