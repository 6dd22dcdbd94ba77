"""dot_product_attention: its arguments, and which implementation it takes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dropout_jax import _validation, ops
from dropout_jax.attention import _blockwise, _naive
from dropout_jax.attention._inputs import Hidden, Inputs, Reach, visible

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def _kernel(*arguments) -> Float[Array, "..."]:
    from dropout_jax.attention import _pallas as attention  # Pallas takes long to import

    return attention.attention(*arguments)


IMPLEMENTATIONS = {
    "naive": _naive.attention,
    "blockwise": _blockwise.attention,
    "kernel": _kernel,
}


SHORT = 64  # queries, up to which the naive implementation is chosen


class _Required:
    def __repr__(self) -> str:
        return "<required unless dropout_rate=0.0>"


_REQUIRED = _Required()


class Choice(NamedTuple):
    """An implementation of attention, and why it was chosen."""

    implementation: str
    reason: str


def dot_product_attention(
    query,
    key,
    value,
    bias=None,
    mask=None,
    *,
    scale=None,
    is_causal=False,
    query_seq_lengths=None,
    key_value_seq_lengths=None,
    local_window_size=None,
    dropout_rate=0.0,
    dropout_key=_REQUIRED,
    dropout_start=None,
    implementation=None,
) -> Float[Array, "batch queries heads dim"]:
    """Scaled dot-product attention with dropout on the weights, in memory linear in the length.

    Formula: dropout(softmax(scale * query . key + bias)) . value, a head at a time. The weights
    that are dropped are those that `keep_mask(dropout_key, dropout_rate, (batch, heads, queries,
    keys))` drops, whatever the implementation; those kept are multiplied by 2^16 / T.

    Args:
      query: (batch, queries, heads, dim), or without the batch; float32, bfloat16, float16 or
        float64.
      key: (batch, keys, key heads, dim), of the query's dtype. The heads are a multiple of the key
        heads: as many, grouped-query attention, or one, multi-query attention.
      value: of the key's shape and dtype.
      bias: added to the scaled logits; broadcasts to (batch, heads, queries, keys).
      mask: bool, True takes part; broadcasts to (batch, heads, queries, keys).
      scale: a number; None is 1 / sqrt(dim).
      is_causal: query i sees keys 0 to i.
      query_seq_lengths: (batch,) integers; queries from there on give zeros.
      key_value_seq_lengths: (batch,) integers; keys from there on are not seen.
      local_window_size: (left, right), or one integer for both: query i sees keys i - left to
        i + right.
      dropout_rate: the probability of dropping a weight, in [0, 1]; a number or a scalar array,
        traced or not.
      dropout_key: one PRNG key: training. None: evaluation. Required unless dropout_rate is 0.
      dropout_start: where in a larger batch this one begins, an integer, traced or not: a part of a
        batch then drops what the batch would drop there.
      implementation: "naive" holds all weights; "blockwise" blocks of them, on any backend;
        "kernel" is a Pallas kernel for GPUs, run in interpret mode elsewhere and so far only there
        (no gradient for bias, no second derivatives). The last two have no forward mode. None
        chooses of the first two: `attention_implementation` says which. (Naive keeps all weights,
        and so does the gradient of a bias that has them all.)

    Returns:
      An array of the query's shape and dtype. Logits, softmax and the product's sums are in float32
      (float64 for float64). A query that sees no key gives zeros, with zero gradients; what a key
      that no query of its batch sees holds, NaN or not, does not matter. A traced rate outside
      [0, 1] gives NaN.

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.
      NotImplementedError: an implementation asked for by name cannot do the case.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017; the arguments are those of
      `jax.nn.dot_product_attention`, which has no dropout and gives such a query the mean of all
      values. Recomputing the weights backward is Dao et al., "FlashAttention", NeurIPS 2022.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import dot_product_attention
      >>> q, k, v = jnp.linspace(-1, 1, 3 * 2 * 64 * 4 * 8).reshape(3, 2, 64, 4, 8)
      >>> y = dot_product_attention(
      ...     q, k, v, is_causal=True, dropout_rate=0.1, dropout_key=jax.random.key(1))
      >>> y.shape
      (2, 64, 4, 8)
    """
    rate = _validation.rate(dropout_rate, "dropout_rate")
    if dropout_key is _REQUIRED:
        dropout_key = _only_without_dropout(rate)
    dropout_key = _validation.key(dropout_key, "dropout_key")
    inputs = _inputs(query, key, value, bias, mask, query_seq_lengths, key_value_seq_lengths)
    queries, keys = inputs.query.shape[1], inputs.key.shape[1]
    window = _window(local_window_size, queries, keys)
    reach = Reach(_validation.flag(is_causal, "is_causal"), window)
    if scale is not None:
        scale = _validation.number(scale, "scale")
    if inputs.query.size == 0 or inputs.key.size == 0:
        return jnp.zeros_like(inputs.query).reshape(query.shape)
    scale = inputs.query.shape[-1] ** -0.5 if scale is None else scale
    dropped = dropout_key is not None and not ops.keeps_everything(rate)
    start = _validation.start(dropout_start, "dropout_start")
    dropout = (dropout_key, jnp.float32(rate), start) if dropped else None
    chosen = attention_implementation(*inputs[:2], implementation=implementation).implementation
    attend = functools.partial(_attend, chosen, scale, reach)
    out = ops.in_sharding_of(inputs.query, attend)(inputs, dropout)
    return out.reshape(query.shape)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _attend(chosen: str, scale: float, reach: Reach, inputs: Inputs, dropout):
    return IMPLEMENTATIONS[chosen](_forget_unseen(reach, inputs), scale, reach, dropout)


@functools.partial(jax.jit, static_argnums=0)
def _forget_unseen(reach: Reach, inputs: Inputs) -> Inputs:
    """Zero the queries that see nothing and the keys that nobody sees: 0 times NaN is NaN."""
    query, key, value, _, hidden = inputs
    rows, keys = (jnp.arange(x.shape[1], dtype=jnp.int32) for x in (query, key))
    low, high = reach.keys_of(0, query.shape[1] - 1, key.shape[1])
    if high - low == key.shape[1] and all(x is None for x in hidden):
        return inputs
    key_seen = ((low <= keys) & (keys < high))[None]
    row_seen = jnp.ones((1, query.shape[1]), bool)
    if hidden.query_lengths is not None:
        row_seen = row_seen & (rows < hidden.query_lengths[:, 0, 0])
    if hidden.key_lengths is not None:
        key_seen = key_seen & (keys < hidden.key_lengths[:, 0, 0])
    seen = None if hidden.mask is None else visible(reach, hidden, rows, keys)
    if seen is not None:
        key_seen, row_seen = key_seen & seen.any(axis=(1, 2)), row_seen & seen.any(axis=(1, 3))
    key, value = (jnp.where(key_seen[:, :, None, None], x, jnp.zeros_like(x)) for x in (key, value))
    query = jnp.where(row_seen[:, :, None, None], query, jnp.zeros_like(query))
    return inputs._replace(query=query, key=key, value=value)


def _only_without_dropout(rate) -> None:
    """The key of a call that names none, which is right where there is nothing to draw."""
    if not isinstance(rate, Tracer) and float(rate) == 0:
        return
    raise TypeError(
        f"dropout_key is missing and dropout_rate={rate!r}: it must be one PRNG key (training) or "
        "None (evaluation). Pass dropout_key=jax.random.key(seed), or dropout_key=None."
    )


def attention_implementation(query, key, *, implementation=None) -> Choice:
    """Say which implementation `dot_product_attention` takes for these shapes here, and why.

    Formula: naive up to 64 queries, else blockwise.

    Args:
      query: an array, or anything with the shape and dtype of one (`jax.ShapeDtypeStruct`).
      key: the same for the key.
      implementation: as in `dot_product_attention`; a name is taken at its word.

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
    if implementation is not None:
        if implementation not in IMPLEMENTATIONS:
            allowed = f"None or one of {', '.join(map(repr, IMPLEMENTATIONS))}"
            _validation.fail(ValueError, "implementation", implementation, allowed, "None chooses.")
        return Choice(implementation, "it was asked for by name")
    queries, keys = query.shape[-3], key.shape[-3]
    if queries <= SHORT:
        return Choice("naive", f"{queries} queries are one block or less: nothing to save")
    return Choice("blockwise", f"{queries} x {keys} weights a head are not kept in memory")


def _inputs(query, key, value, bias, mask, query_lengths, key_lengths) -> Inputs:
    query, key, value = (
        _validation.real_array(x, name)
        for x, name in ((query, "query"), (key, "key"), (value, "value"))
    )
    layout = "(batch, positions, heads, dim) or (positions, heads, dim)"
    _validation.between_axes(query, 3, 4, "query", layout)
    if query.ndim == key.ndim == 3:
        query, key, value = query[None], key[None], value[None]
    _validation.attention_shapes(query, key)
    _validation.same_form(value, key, "value", "key")
    weights = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    if bias is not None:
        bias = _four_axes(_validation.broadcastable(bias, weights, "bias"))
    if mask is not None:
        mask = _four_axes(_validation.mask(mask, weights, "mask", of="the weights"))
    lengths = [
        None if x is None else _validation.lengths(x, query.shape[0], name)[:, None, None, None]
        for x, name in (
            (query_lengths, "query_seq_lengths"),
            (key_lengths, "key_value_seq_lengths"),
        )
    ]
    return Inputs(query, key, value, bias, Hidden(mask, *lengths))


def _four_axes(x):
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _window(size, queries: int, keys: int) -> tuple[int, int] | None:
    if size is None:
        return None
    both = tuple(size) if isinstance(size, tuple | list) else (size, size)
    whole = all(isinstance(each, int | np.integer) and each >= 0 for each in both)
    if len(both) != 2 or not whole:
        allowed = "an integer of at least 0, or a pair of them, (left, right)"
        _validation.fail(
            ValueError, "local_window_size", size, allowed, "(3, 0) is the three before."
        )
    return min(int(both[0]), queries), min(int(both[1]), keys)  # and no sum overflows
