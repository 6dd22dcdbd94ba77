"""Attention with the signature of Flax's, to pass as `attention_fn` to Flax's layers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from dropout_jax import _validation, ops
from dropout_jax.attention._api import dot_product_attention
from dropout_jax.attention._naive import softmax
from dropout_jax.attention._products import multiply

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def attention_fn(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    broadcast_dropout: bool = False,
    dropout_rng: jax.Array | None = None,
    dropout_rate: ArrayLike = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: Any = None,
    module: Any = None,
    promote_dtype: Callable[..., tuple[jax.Array, ...]] | None = None,
    is_causal: bool = False,
    force_fp32_for_softmax: bool = True,
    einsum_dot_general: Callable[..., jax.Array] | None = None,
    qk_attn_weights_einsum: Callable[..., jax.Array] | None = None,
    attn_weights_value_einsum: Callable[..., jax.Array] | None = None,
) -> Float[Array, "*batch queries heads dim"]:
    """Compute attention with dropout, in place of Flax's `dot_product_attention`.

    Pass it as `nnx.MultiHeadAttention(attention_fn=attention_fn)`, or to linen's
    `MultiHeadDotProductAttention`. Formula: that of `dropout_jax.dot_product_attention`, which it
    calls, in memory linear in the length. It has all weights in memory where somebody asks for
    them: with `module`, an einsum of the caller, or a value of another depth than the key.

    Args:
      query: (batch..., queries, heads, dim).
      key: (batch..., keys, key heads, dim); the heads are a multiple of the key heads.
      value: (batch..., keys, key heads, value dim).
      bias: added to the scaled logits; broadcasts to (batch..., heads, queries, keys).
      mask: nonzero is visible; broadcasts to (batch..., heads, queries, keys).
      broadcast_dropout: whether all rows of the batch and all heads have one mask. Flax's layers
        pass True by default: pass `broadcast_dropout=False` to the layer for masks of their own.
      dropout_rng: one PRNG key; needed unless `deterministic` or at rate 0.
      dropout_rate: the probability of dropping a weight, in [0, 1].
      deterministic: True is evaluation.
      dtype: of the computation; None is the promoted dtype of query, key and value.
      precision: of the products, as in `jax.default_matmul_precision` or a `jax.lax.Precision`.
      module: the module that sows the weights, before dropout, as Flax does: as "intermediates".
      promote_dtype: as in `flax.nnx`: a function of (query, key, value) and `dtype`.
      is_causal: whether query i sees only keys 0 to i.
      force_fp32_for_softmax: the softmax is always in float32 or wider.
      einsum_dot_general: computes the products, in place of `jax.lax.dot_general`.
      qk_attn_weights_einsum: computes the logits, such as a quantized einsum.
      attn_weights_value_einsum: computes the output. Both einsums are given, or none.

    Returns:
      (batch..., queries, heads, value dim).

    Raises:
      TypeError, ValueError: naming the argument, its value, what is allowed and the remedy.

    Differs from Flax: the mask is that of `dropout_jax.keep_mask`; a query that sees no key gives
    zeros and not the mean of all values; float32 sums in half precision.

    Source: `flax.nnx.dot_product_attention` and `flax.linen.dot_product_attention`.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax.nn import attention_fn
      >>> from flax import nnx
      >>> layer = nnx.MultiHeadAttention(
      ...     4, 16, dropout_rate=0.1, broadcast_dropout=False, attention_fn=attention_fn,
      ...     deterministic=False, decode=False, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 100, 16))).shape
      (2, 100, 16)
    """
    query, key, value = _promote(query, key, value, dtype, promote_dtype)
    _check_shapes(query, key, value)
    products = _choose_products(
        precision, einsum_dot_general, qk_attn_weights_einsum, attn_weights_value_einsum
    )
    batch, (queries, heads) = query.shape[:-3], query.shape[-3:-1]
    weights = (*batch, heads, queries, key.shape[-3])
    if bias is not None:
        bias = _flatten_batch(jnp.asarray(bias), weights)
    if mask is not None:
        mask = _flatten_batch(jnp.asarray(mask).astype(bool), weights)
    query, key, value = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    options = {
        "dropout_rate": 0.0 if deterministic else dropout_rate,
        "dropout_key": None if deterministic else _require_key(dropout_rng, dropout_rate),
        "dropout_broadcast_dims": (0, 1) if broadcast_dropout else (),
    }
    has_all_weights = module is not None or products is not None or value.shape != key.shape
    with _set_precision(precision):
        if has_all_weights:
            visible = _combine_masks(mask, weights, is_causal)
            arrays = query, key, value
            out = _attend_with_weights(arrays, bias, visible, products, module, batch, options)
        else:
            out = dot_product_attention(
                query, key, value, bias, mask, is_causal=is_causal, **options
            )
    return out.reshape(*batch, queries, heads, value.shape[-1])


def _promote(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    dtype: DTypeLike | None,
    promote_dtype: Callable[..., tuple[jax.Array, ...]] | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return arrays of one floating dtype, `dtype` if it is given."""
    if promote_dtype is not None:
        query, key, value = promote_dtype((query, key, value), dtype=dtype)
        return query, key, value
    if dtype is None:
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(query, key, value)
        dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32
    return jnp.asarray(query, dtype), jnp.asarray(key, dtype), jnp.asarray(value, dtype)


def _check_shapes(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    """Refuse shapes that do not fit, in the words of Flax."""
    _validation.check_min_ndim(query, 3, "query")
    batch, (heads, dim) = query.shape[:-3], query.shape[-2:]
    expected = (*batch, "keys", "key heads", dim)
    for name, array in (("key", key), ("value", value)):
        if array.ndim != query.ndim:
            _refuse_shape(name, array, expected, "query, key and value must have the same rank")
        if array.shape[:-3] != batch:
            _refuse_shape(name, array, expected, "their batch dims must match")
    if key.shape[-1] != dim:
        _refuse_shape("key", key, expected, "query and key depths must match")
    if not key.shape[-2] or heads % key.shape[-2]:
        rule = f"the {heads} heads of the query must be a multiple of the key's"
        _refuse_shape("key", key, expected, rule)
    if value.shape[-3:-1] != key.shape[-3:-1]:
        _refuse_shape("value", value, (*key.shape[:-1], "dim"), "key and value lengths must match")


def _refuse_shape(name: str, array: jax.Array, expected: tuple, rule: str) -> NoReturn:
    shape = tuple(array.shape)
    _validation.fail(ValueError, f"{name}.shape", shape, f"{expected}: {rule}", "Reshape it.")


def _require_key(dropout_rng: jax.Array | None, rate: ArrayLike) -> jax.Array | None:
    is_off = isinstance(rate, int | float) and rate == 0
    if dropout_rng is None and not is_off:
        raise ValueError(
            f"dropout_rng=None is not allowed: it must be one PRNG key, as dropout_rate={rate!r} "
            "and deterministic=False. Pass dropout_rng=jax.random.key(seed), or deterministic=True."
        )
    return dropout_rng


def _flatten_batch(x: jax.Array, weights: tuple[int, ...]) -> jax.Array:
    """Return an array that broadcasts to `weights` as one of (batch, heads, queries, keys)."""
    x = x.reshape((1,) * (len(weights) - x.ndim) + x.shape)
    batch = x.shape[:-3]
    if any(size != 1 for size in batch):
        x = jnp.broadcast_to(x, (*weights[:-3], *x.shape[-3:]))
    return x.reshape(-1, *x.shape[-3:]) if len(weights) > 3 else x[None]


def _choose_products(
    precision: Any,
    dot_general: Callable | None,
    logits_einsum: Callable | None,
    output_einsum: Callable | None,
) -> tuple[Callable, Callable] | None:
    """Return the caller's products for the logits and the output, or None."""
    if (logits_einsum is None) != (output_einsum is None):
        raise ValueError(
            "qk_attn_weights_einsum and attn_weights_value_einsum must be specified together. "
            "Pass both, or none."
        )
    if logits_einsum is not None and (precision is not None or dot_general is not None):
        raise ValueError(
            "precision/einsum_dot_general and qk_attn_weights_einsum/attn_weights_value_einsum are "
            "mutually exclusive. Please specify only one of them."
        )
    if logits_einsum is not None and output_einsum is not None:
        return (
            functools.partial(logits_einsum, "...qhd,...khd->...hqk"),
            functools.partial(output_einsum, "...hqk,...khd->...qhd"),
        )
    if dot_general is None:
        return None

    def compute_logits(query: jax.Array, key: jax.Array) -> jax.Array:
        return dot_general(query, key, (((3,), (3,)), ((0, 2), (0, 2))), precision=precision)

    def compute_output(weights: jax.Array, value: jax.Array) -> jax.Array:
        dims = ((3,), (1,)), ((0, 1), (0, 2))
        return jnp.moveaxis(dot_general(weights, value, dims, precision=precision), 1, 2)

    return compute_logits, compute_output


def _set_precision(precision: Any) -> contextlib.AbstractContextManager:
    """Return a context in which products have a precision."""
    if precision is None:
        return contextlib.nullcontext()
    if isinstance(precision, tuple | list):
        if precision[0] != precision[-1]:
            allowed = "one precision for both operands"
            remedy = f"Pass precision={precision[0]!r}."
            _validation.fail(ValueError, "precision", precision, allowed, remedy)
        precision = precision[0]
    return jax.default_matmul_precision(getattr(precision, "name", str(precision)).lower())


def _combine_masks(
    mask: Bool[Array, "#batch #heads #queries #keys"] | None,
    weights: tuple[int, ...],
    is_causal: bool,
) -> Bool[Array, "#batch #heads #queries #keys"] | None:
    """Return the mask with the causal one."""
    if not is_causal:
        return mask
    causal = jnp.tril(jnp.ones((1, 1, *weights[-2:]), bool))
    return causal if mask is None else causal & mask


def _attend_with_weights(
    arrays: tuple[jax.Array, jax.Array, jax.Array],
    bias: Float[Array, "#batch #heads #queries #keys"] | None,
    visible: Bool[Array, "#batch #heads #queries #keys"] | None,
    products: tuple[Callable, Callable] | None,
    module: Any,
    batch: tuple[int, ...],
    dropout: dict[str, Any],
) -> Float[Array, "batch queries heads dim"]:
    """Compute attention with all weights in memory; `module` sows them before dropout."""
    query, key, value = arrays
    compute_logits, compute_output = products or (_compute_logits, _compute_output)
    groups = query.shape[2] // key.shape[2]
    if groups > 1:
        key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    logits = ops.widen(compute_logits(query, key))
    if bias is not None:
        logits = logits + ops.widen(bias)
    if visible is not None:
        logits = jnp.where(visible, logits, -jnp.inf)
    weights = softmax(logits)[0].astype(query.dtype)
    if module is not None:
        _sow(module, weights.reshape(*batch, *weights.shape[1:]))
    if dropout["dropout_key"] is not None:
        weights = ops.dropout(
            weights,
            dropout["dropout_rate"],
            key=dropout["dropout_key"],
            broadcast_dims=dropout["dropout_broadcast_dims"],
        )
    return compute_output(weights, value)


def _compute_logits(query: jax.Array, key: jax.Array) -> jax.Array:
    return multiply("bqhd,bkhd->bhqk", query, key)


def _compute_output(weights: jax.Array, value: jax.Array) -> jax.Array:
    return multiply("bhqk,bkhd->bqhd", weights, value).astype(value.dtype)


def _sow(module: Any, weights: Float[Array, "*batch heads queries keys"]) -> None:
    """Give the weights to a module of nnx or of linen, as Flax's attention does."""
    from flax import nnx  # only a module of Flax comes here

    collection = nnx.Intermediate if isinstance(module, nnx.Module) else "intermediates"
    module.sow(collection, "attention_weights", weights)
