"""MultiHeadAttention: projections around attention with dropout, with and without a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from dropout_jax import _validation
from dropout_jax.attention import dot_product_attention
from dropout_jax.nn._layers import RateLayer, Rngs

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int32

LECUN_NORMAL = nnx.initializers.lecun_normal()


class KeyValueCache(NamedTuple):
    """The keys and values of the positions so far, with room for more."""

    keys: Float[Array, "batch room heads dim"]
    values: Float[Array, "batch room heads dim"]
    length: Int32[Array, ""]
    """how many positions are filled"""

    def append(
        self,
        keys: Float[Array, "batch time heads dim"],
        values: Float[Array, "batch time heads dim"],
    ) -> KeyValueCache:
        """Return the cache with the keys and values of further positions.

        Where there is no room for them, a known length is an error, and a traced one gives NaN.
        """
        room, length = self.keys.shape[1], self.length + keys.shape[1]
        if not isinstance(length, Tracer) and length > room:
            allowed = f"at most {room} positions, the room of the cache, with those of this call"
            remedy = "Pass a larger room to init_cache."
            _validation.fail(ValueError, "cache.length", int(self.length), allowed, remedy)
        values = jnp.where(length <= room, values, jnp.nan)
        start = (0, self.length, 0, 0)
        return KeyValueCache(
            lax.dynamic_update_slice(self.keys, keys.astype(self.keys.dtype), start),
            lax.dynamic_update_slice(self.values, values.astype(self.values.dtype), start),
            length,
        )


class MultiHeadAttention(RateLayer):
    """Project to heads, attend with dropout on the weights, project back.

    Formula: out(concat(dropout(softmax(q k^T / sqrt(dim) + bias)) v)), with q, k and v the
    projections of the inputs, head by head, in memory linear in the length. The dropped weights are
    those of `keep_mask(key, dropout_rate, (batch, heads, queries, keys))`.

    The parameters have the names and shapes of `flax.nnx.MultiHeadAttention`: `query`, `key` and
    `value` with kernels (features, heads, dim), `out` with (heads, dim, features).

    Args:
      num_heads: of the queries.
      in_features: of the input of the queries.
      qkv_features: of all heads together; None is `in_features`.
      out_features: of the output; None is `in_features`.
      num_kv_heads: of the keys and values, a divisor of `num_heads`; None is `num_heads`.
      in_kv_features: of the input of the keys and values; None is `in_features`.
      dropout_rate: the probability of dropping a weight.
      use_bias: whether the projections have biases.
      dtype: of the computation; None is the promoted dtype of inputs and parameters.
      param_dtype: of the parameters.
      kernel_init: of the four kernels.
      deterministic: True evaluates; `train()`, `eval()` and `nnx.view` set it.
      rng_collection: the stream of `rngs` that gives the keys of dropout.
      rngs: gives the parameters and, if it has that stream, the keys of dropout. The parameters of
        a seed are the same at every rate.

    Raises:
      ValueError: numbers of heads and features that do not divide.

    Differs from Flax: each row and each head has a mask of its own; a query that sees no key gives
    zeros; the cache is a value. Differs from PyTorch: batch first; True in a mask is visible;
    in a new layer the kernels are LeCun normal.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017.

    Example:
      >>> import jax.numpy as jnp
      >>> from dropout_jax.nn import MultiHeadAttention
      >>> from flax import nnx
      >>> layer = MultiHeadAttention(4, 16, dropout_rate=0.1, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 100, 16)), is_causal=True).shape
      (2, 100, 16)
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        *,
        qkv_features: int | None = None,
        out_features: int | None = None,
        num_kv_heads: int | None = None,
        in_kv_features: int | None = None,
        dropout_rate: ArrayLike = 0.0,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        kernel_init: Any = LECUN_NORMAL,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            dropout_rate,
            deterministic=deterministic,
            rng_collection=rng_collection,
            rngs=with_stream(rngs, rng_collection),
        )
        width = in_features if qkv_features is None else qkv_features
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        _check_divides("num_heads", num_heads, f"qkv_features={width}", width)
        _check_divides("num_kv_heads", kv_heads, f"num_heads={num_heads}", num_heads)
        heads, key_heads = (num_heads, width // num_heads), (kv_heads, width // num_heads)
        kv_features = in_features if in_kv_features is None else in_kv_features
        options = {"use_bias": use_bias, "dtype": dtype, "param_dtype": param_dtype}
        options |= {"kernel_init": kernel_init, "rngs": rngs}
        self.dtype = dtype
        self.query = nnx.LinearGeneral(in_features, heads, **options)
        self.key = nnx.LinearGeneral(kv_features, key_heads, **options)
        self.value = nnx.LinearGeneral(kv_features, key_heads, **options)
        self.out = nnx.LinearGeneral(heads, out_features or in_features, axis=(-2, -1), **options)

    def __call__(
        self,
        inputs_q: Float[Array, "batch queries features"],
        inputs_k: Float[Array, "batch keys kv_features"] | None = None,
        inputs_v: Float[Array, "batch keys kv_features"] | None = None,
        *,
        mask: Bool[Array, "#batch #heads #queries #keys"] | None = None,
        key_mask: Bool[Array, "batch keys"] | None = None,
        bias: Float[Array, "#batch #heads #queries #keys"] | None = None,
        is_causal: bool = False,
        cache: KeyValueCache | None = None,
        deterministic: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> Any:
        """Attend from `inputs_q` to the keys of `inputs_k` and the values of `inputs_v`.

        Args:
          inputs_q: of the queries.
          inputs_k: of the keys; None is `inputs_q`, self-attention.
          inputs_v: of the values; None is that of the keys.
          mask: True is visible.
          key_mask: True is a token, False padding that no query sees.
          bias: added to the scaled logits.
          is_causal: whether query i sees only keys 0 to i.
          cache: the keys and values before these; at evaluation only. Its positions are visible to
            every query, and `is_causal` is among those of this call. A mask has the cache's room as
            its keys.
          deterministic: as in the constructor, over which it takes precedence.
          rngs: likewise; or a key.

        Returns:
          (batch, queries, features); with a cache, that and the cache with these positions.
        """
        inputs_k = inputs_q if inputs_k is None else inputs_k
        inputs_v = inputs_k if inputs_v is None else inputs_v
        dropout_key = self._next_key(deterministic, rngs, self.rate)
        query, keys, values = self.query(inputs_q), self.key(inputs_k), self.value(inputs_v)
        if cache is not None:
            _check_evaluates(dropout_key)
            cache = cache.append(keys, values)
            keys, values = cache.keys.astype(query.dtype), cache.values.astype(query.dtype)
            mask = combine_masks(mask, _see_filled(cache, query.shape[1], is_causal))
            is_causal = False
        if key_mask is not None:
            mask = combine_masks(mask, key_mask[:, None, None, :])
        context = dot_product_attention(
            query,
            keys,
            values,
            bias,
            mask,
            is_causal=is_causal,
            dropout_rate=self.rate,
            dropout_key=dropout_key,
        )
        out = self.out(context)
        return out if cache is None else (out, cache)

    def init_cache(self, batch: int, room: int, dtype: DTypeLike | None = None) -> KeyValueCache:
        """Return an empty cache with room for so many positions of so many rows.

        `dtype` None is that of the layer, or else of its parameters.
        """
        heads, dim = self.key.out_features
        dtype = dtype or self.dtype or self.key.param_dtype
        empty = jnp.zeros((batch, room, heads, dim), dtype)
        return KeyValueCache(empty, empty, jnp.zeros((), jnp.int32))


def with_stream(rngs: nnx.Rngs, collection: str) -> nnx.Rngs | None:
    """Return `rngs` if it has this stream, else None: then a layer takes its keys in the call."""
    return rngs if collection in rngs or "default" in rngs else None


def combine_masks(
    a: Bool[Array, "..."] | None, b: Bool[Array, "..."] | None
) -> Bool[Array, "..."] | None:
    """Return what is visible in both; None is everything."""
    if a is None or b is None:
        return b if a is None else a
    return a & b


def _see_filled(
    cache: KeyValueCache, queries: int, is_causal: bool
) -> Bool[Array, "1 1 #queries room"]:
    """Which positions of a cache the last `queries` of them see."""
    positions = jnp.arange(cache.keys.shape[1])
    if not is_causal:
        return (positions < cache.length)[None, None, None]
    own = cache.length - queries + jnp.arange(queries)
    return (positions <= own[:, None])[None, None]


def _check_divides(name: str, value: int, whole_name: str, whole: int) -> None:
    if value < 1 or whole % value:
        remedy = f"Pass a divisor of {whole}."
        _validation.fail(ValueError, name, value, f"a divisor of {whole_name}", remedy)


def _check_evaluates(dropout_key: jax.Array | None) -> None:
    if dropout_key is not None:
        raise ValueError(
            "cache=... is not allowed with dropout: a cache has no masks of the positions before. "
            "Pass deterministic=True, or call model.eval()."
        )
