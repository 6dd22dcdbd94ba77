"""The GPT: GPT-2's architecture in flax.nnx, with dropout at every site.

model(tokens, key=key) is training, model(tokens, key=None) is evaluation; the modules hold no
random state. model(tokens, key=None, masks=masks) is training with masks from another source, by
the site's name (dropout_sites.py). Pre-norm (or post-norm) blocks, learned positions, and an output
layer that shares its weights with the token embedding; by the options of ModelConfig the parts of
Llama instead (Touvron et al., 2023): RMS norms, rotary positions (Su et al., "RoFormer", 2021),
SwiGLU (Shazeer, 2020), grouped heads (Ainslie et al., 2023), an output layer of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.core import Tracer

from dropout_jax import dot_product_attention
from minigpt.config import DropoutConfig, ModelConfig
from minigpt.distributed import constrain_batch_sharding, constrain_replicated
from minigpt.model.dropout_sites import Captures, DropoutSite, rates_over_depth
from minigpt.model.key_values import KeyValues
from minigpt.model.lora import LoraLinear, apply_dense, apply_per_token
from minigpt.model.rotary import rotary_cos_sin, rotate

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Integer

_INIT_STD = 0.02
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nnx.gelu, approximate=False),
    "gelu_tanh": functools.partial(nnx.gelu, approximate=True),
    "relu": nnx.relu,
    "swiglu": nnx.silu,
}

Attend = Callable[..., jax.Array]
"""(query, keys, values, rate, site) to the context vectors: each (batch, time, heads, dim)"""


class GPT(nnx.Module):
    """Tokens to logits."""

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        self.tokens = _embed(config, vocab_size, rngs)
        is_learned = config.positions == "learned"
        self.positions = _embed(config, config.block_size, rngs) if is_learned else None
        blocks = [Block(config, rngs=rngs) for _ in range(config.n_layer)]
        self.blocks: Any = _stack_blocks(blocks) if config.scan_layers else nnx.List(blocks)
        self.norm = _norm(config, rngs) if config.norm == "pre" else None
        self.head = None if config.tied_head else _head(config, vocab_size, rngs)

    def __call__(
        self,
        tokens: Integer[Array | np.ndarray, "batch time"],
        *,
        key: jax.Array | None,
        masks: Mapping[str, Any] | None = None,
        captures: Captures | None = None,
        row_offset: jax.Array | None = None,
    ) -> Float[Array, "batch time vocab"]:
        """Logits of the next token at every position; `key=None` turns dropout off.

        `masks` replace the key, `captures` receives the inputs, masks and outputs of the sites, and
        `row_offset` is this batch's first row in a larger batch: see DropoutSite.
        """
        table = _gather_table(self.tokens)
        root = self._root_site(key, masks, captures, row_offset)
        return self._logits(self._features(tokens, table, root), table)

    def features(
        self,
        tokens: Integer[Array | np.ndarray, "batch time"],
        *,
        key: jax.Array | None,
        masks: Mapping[str, Any] | None = None,
        captures: Captures | None = None,
        row_offset: jax.Array | None = None,
    ) -> Float[Array, "batch time dim"]:
        """The input of the output layer: one vector per position, a function of the text so far."""
        root = self._root_site(key, masks, captures, row_offset)
        return self._features(tokens, _gather_table(self.tokens), root)

    def _root_site(
        self,
        key: jax.Array | None,
        masks: Mapping[str, Any] | None,
        captures: Captures | None,
        row_offset: jax.Array | None,
    ) -> DropoutSite:
        rates = self.config.dropout
        return DropoutSite(key, masks, captures, row_offset=row_offset, rates=rates)

    def _features(
        self, tokens: jax.Array | np.ndarray, table: jax.Array, root: DropoutSite
    ) -> jax.Array:
        """Features of tokens; the gathered token table is the caller's, who may use it again."""
        if tokens.shape[1] > self.config.block_size:
            raise ValueError(
                f"tokens.shape={tokens.shape} is not allowed: a row may have at most "
                f"block_size={self.config.block_size} tokens. Cut the text: tokens[:, -n:]."
            )
        _check_known_tokens(tokens, self.tokens.num_embeddings)
        learned = self._learned_positions(slice(tokens.shape[1]))
        x = constrain_batch_sharding(jnp.take(table, jnp.asarray(tokens), axis=0) + learned)
        x = root.at("embed").dropout(x, root.rates.embed)
        attend = self._with_rotation(_attend, jnp.arange(tokens.shape[1]), x.dtype)
        x = self._apply_blocks(x, root, attend)
        return self.norm(x) if self.norm else x

    def _learned_positions(self, positions: slice | jax.Array) -> jax.Array | float:
        """The vectors that are added to tokens at these positions; 0 if they are rotary."""
        return 0.0 if self.positions is None else _gather_table(self.positions)[positions]

    def _with_rotation(self, attend: Attend, positions: jax.Array, dtype: Any) -> Attend:
        """The same attention, with queries and keys rotated by their positions if these are rotary.

        `positions` are those of every row, (time,), or of each one, (batch, time).
        """
        config = self.config
        if config.positions == "learned":
            return attend
        dim = config.n_embd // config.n_head
        cos, sin = rotary_cos_sin(positions, dim, config.rope_theta, dtype)

        def attend_rotated(query: jax.Array, keys: jax.Array, *rest: Any) -> jax.Array:
            return attend(rotate(query, cos, sin), rotate(keys, cos, sin), *rest)

        return attend_rotated

    def fill_cache(self, tokens: Integer[Array | np.ndarray, "batch time"]) -> list[KeyValues]:
        """The keys and values of every layer for tokens at positions 0, 1, ..., dropout off.

        The cache has room for block_size positions. See `next_logits`.
        """
        cache: list[KeyValues] = []

        def attend(
            query: jax.Array, keys: jax.Array, values: jax.Array, *rate_and_site: Any
        ) -> jax.Array:
            cache.append(KeyValues.with_room(keys, values, self.config.block_size))
            return _attend(query, keys, values, *rate_and_site)

        table = _gather_table(self.tokens)
        x = table[tokens] + self._learned_positions(slice(tokens.shape[1]))
        rotated = self._with_rotation(attend, jnp.arange(tokens.shape[1]), x.dtype)
        for block in self._unstacked_blocks():
            x = block(x, DropoutSite(None), rotated)
        return cache

    def next_logits(
        self,
        cache: list[KeyValues],
        tokens: Integer[Array, " batch"],
        positions: Integer[Array, " batch"],
    ) -> tuple[Float[Array, "batch vocab"], list[KeyValues]]:
        """Logits after one more token per row, and the cache with its keys and values, dropout off.

        A row's token has the position `positions[row]`, from 0 to block_size - 1, and attends to
        the cached positions up to its own.
        """
        cache = list(cache)

        def attend(i: int, query: jax.Array, keys: jax.Array, values: jax.Array, *_: Any) -> Any:
            cache[i] = cache[i].write(positions, keys, values)
            return cache[i].attend(positions, query)

        table = _gather_table(self.tokens)
        x = (table[tokens] + self._learned_positions(positions))[:, None]
        for i, block in enumerate(self._unstacked_blocks()):
            rotated = self._with_rotation(functools.partial(attend, i), positions[:, None], x.dtype)
            x = block(x, DropoutSite(None), rotated)
        return self._logits(self.norm(x) if self.norm else x, table)[:, 0], cache

    def _logits(self, features: jax.Array, table: jax.Array) -> jax.Array:
        """The output layer, which shares its weights with the token table, or has its own."""
        if self.head is None:
            logits = apply_per_token(lambda x: jnp.dot(x, table.T), features)
        else:
            logits = apply_per_token(self.head, features)
        return logits.astype(jnp.promote_types(logits.dtype, "float32"))

    def _apply_blocks(self, x: jax.Array, root: DropoutSite, attend: Attend) -> jax.Array:
        """Apply all blocks, with or without scan and remat; the masks are the same."""
        config, rates = self.config, rates_over_depth(root.rates, self.config.n_layer)
        if not root.uses_key_only or not (config.remat or config.scan_layers):
            for i, block in enumerate(self._unstacked_blocks()):
                x = block(x, root.at("block", i)._replace(rates=rates[i]), attend)
            return x

        def block_function(rates: DropoutConfig) -> Callable[..., tuple[jax.Array, None]]:
            def apply(x: jax.Array, layer: tuple[Any, Any, Any]) -> tuple[jax.Array, None]:
                params, i, varying = layer
                site = root.at("block", i)._replace(rates=dataclasses.replace(rates, **varying))
                return nnx.merge(graph, params)(x, site, attend), None

            return jax.checkpoint(apply) if config.remat else apply

        if config.scan_layers:
            graph, stacked = nnx.split(self.blocks)
            common, varying = _split_rates(rates)
            layers = stacked, jnp.arange(config.n_layer, dtype=jnp.uint32), varying
            return lax.scan(block_function(common), x, layers)[0]
        # One function for each set of rates: jax.checkpoint traces a function once.
        functions = {id(block_rates): block_function(block_rates) for block_rates in rates}
        for i, block in enumerate(self.blocks):
            graph, params = nnx.split(block)  # every block has the same structure
            x, _ = functions[id(rates[i])](x, (params, i, {}))
        return x

    def _unstacked_blocks(self) -> Iterable[Block]:
        if not self.config.scan_layers:
            return self.blocks
        graph, stacked = nnx.split(self.blocks)

        def block(i: int) -> Block:
            return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[i], stacked))

        return map(block, range(self.config.n_layer))


def unstack_layers(model: GPT) -> GPT:
    """The same model with its layers one by one, which is faster to run without a scan."""
    blocks, unstacked = nnx.List(model._unstacked_blocks()), nnx.merge(*nnx.split(model))
    unstacked.config = dataclasses.replace(model.config, scan_layers=False)
    unstacked.blocks = blocks
    return unstacked


def set_rates(model: GPT, rates: DropoutConfig) -> None:
    """Change the dropout rates of a model.

    With traced rates, one compiled step serves all rates.

    >>> model = GPT(ModelConfig(1, 1, 8, 4), vocab_size=5, rngs=nnx.Rngs(0))
    >>> set_rates(model, DropoutConfig.uniform(0.5))
    >>> model.config.dropout.embed
    0.5
    """
    model.config = dataclasses.replace(model.config, dropout=rates)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop_path drops a branch for whole rows.

    Post-norm: norm(x + attention(x)), then norm(x + mlp(x)).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.pre = config.norm == "pre"
        self.attn_norm = _norm(config, rngs)
        self.attn = Attention(config, rngs=rngs)
        self.mlp_norm = _norm(config, rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time dim"], site: DropoutSite, attend: Attend | None = None
    ) -> Float[Array, "batch time dim"]:
        """Apply both residual branches; `attend` replaces causal attention among x's positions."""
        attn = functools.partial(self.attn, attend=attend)
        x = self._add_branch("attn", self.attn_norm, attn, x, site)
        return self._add_branch("mlp", self.mlp_norm, self.mlp, x, site)

    def _add_branch(
        self,
        name: str,
        norm: nnx.LayerNorm | nnx.RMSNorm,
        branch: Callable[[jax.Array, DropoutSite], jax.Array],
        x: jax.Array,
        site: DropoutSite,
    ) -> jax.Array:
        transformed = branch(norm(x) if self.pre else x, site)
        x = constrain_batch_sharding(
            x + site.at("drop_path", name).drop_path(transformed, site.rates.drop_path)
        )
        return x if self.pre else constrain_batch_sharding(norm(x))


class Attention(nnx.Module):
    """Causal self-attention with dropout on the weights, the context vectors and the output."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.heads, self.kv_heads = config.n_head, config.kv_heads
        kv_width = config.n_embd // config.n_head * config.kv_heads
        self.qkv = _dense(config, "qkv", config.n_embd, config.n_embd + 2 * kv_width, rngs)
        self.out = _dense(config, "out", config.n_embd, config.n_embd, rngs, residual=True)

    def __call__(
        self, x: Float[Array, "batch time dim"], site: DropoutSite, attend: Attend | None = None
    ) -> Float[Array, "batch time dim"]:
        """Attend from each position to itself and the positions before it, or as `attend` does."""
        attend = attend or _attend
        batch, time, dim = x.shape
        ends = [dim, dim + dim // self.heads * self.kv_heads]
        qkv = apply_dense(self.qkv, x, site, "qkv")
        query, keys, values = (
            array.reshape(batch, time, -1, dim // self.heads)
            for array in jnp.split(qkv, ends, axis=-1)
        )
        rates = site.rates
        context = attend(query, keys, values, rates.attn_weights, site.at("attn_weights"))
        context = context.reshape(x.shape)
        context = site.at("attn_context").dropout(context, rates.attn_context)
        out = apply_dense(self.out, context, site, "out")
        return site.at("attn_out").dropout(out, rates.attn_out)


class MLP(nnx.Module):
    """A wider dense layer, an activation, and a dense layer back, with dropout.

    swiglu: the wider layer is multiplied by the activation of another one, the gate.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        is_gated, width = config.activation == "swiglu", config.mlp_width
        self.activation = ACTIVATIONS[config.activation]
        self.wide = _dense(config, "mlp_in", config.n_embd, width, rngs)
        self.out = _dense(config, "mlp_out", width, config.n_embd, rngs, residual=True)
        self.gate = _dense(config, "mlp_gate", config.n_embd, width, rngs) if is_gated else None

    def __call__(
        self, x: Float[Array, "batch time dim"], site: DropoutSite
    ) -> Float[Array, "batch time dim"]:
        """Transform each position by itself."""
        hidden = apply_dense(self.wide, x, site, "mlp_in")
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(apply_dense(self.gate, x, site, "mlp_gate")) * hidden
        hidden = site.at("mlp_hidden").dropout(hidden, site.rates.mlp_hidden)
        out = apply_dense(self.out, hidden, site, "mlp_out")
        return site.at("mlp_out").dropout(out, site.rates.mlp_out)


def _check_known_tokens(tokens: jax.Array | np.ndarray, vocab_size: int) -> None:
    """Refuse ids that are not in the vocabulary; a negative one would count from its end."""
    if isinstance(tokens, Tracer) or not getattr(tokens, "is_fully_addressable", True):
        return
    ids = np.asarray(tokens)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(
            f"tokens={tokens!r:.200} is not allowed: ids must be integers from 0 to "
            f"{vocab_size - 1}. Encode the text with the tokenizer of this model."
        )


def _stack_blocks(blocks: list[Block]) -> Block:
    """One block whose arrays have the layers as their first axis."""
    graph, layers = nnx.split(blocks[0])[0], [nnx.split(block)[1] for block in blocks]
    return nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))


def _split_rates(blocks: tuple[DropoutConfig, ...]) -> tuple[DropoutConfig, dict[str, jax.Array]]:
    """The rates that all blocks share, and an array over the blocks for each of the others."""
    last = blocks[-1]
    varying = {
        name: jnp.stack([jnp.float32(block.rates[name]) for block in blocks])
        for name, rate in last.rates.items()
        if (isinstance(rate, jax.Array) or rate) and blocks[0].rates[name] is not rate
    }
    return last, varying


def _attend(
    query: jax.Array, keys: jax.Array, values: jax.Array, rate: float | jax.Array, site: DropoutSite
) -> jax.Array:
    """Causal attention; materializes the weights only if the site needs an explicit mask."""
    if site.uses_key_only:
        dropout: Any = {
            "dropout_rate": rate,
            "dropout_key": site.key,
            "dropout_row_offset": site.row_offset,
        }
        return dot_product_attention(query, keys, values, is_causal=True, **dropout)
    time, dim = query.shape[1], query.shape[-1]
    group = query.shape[2] // keys.shape[2]
    if group > 1:
        keys, values = (jnp.repeat(array, group, axis=2) for array in (keys, values))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys) / math.sqrt(dim)
    is_visible = jnp.tril(jnp.ones((time, time), bool))
    weights = nnx.softmax(jnp.where(is_visible, scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhd->bqhd", site.dropout(weights, rate), values)


def _embed(config: ModelConfig, rows: int, rngs: nnx.Rngs) -> nnx.Embed:
    init = nnx.initializers.normal(_INIT_STD)
    table = nnx.Embed(rows, config.n_embd, embedding_init=init, rngs=rngs)
    table.dtype = _dtype(config)  # without this, Embed keeps the table's initial dtype
    return table


def _gather_table(table: nnx.Embed) -> jax.Array:
    """A table in the dtype of the computation, gathered on every device.

    Rows that are looked up in a table sharded by columns are sharded by columns too, and to shard
    them by rows XLA would replicate the activation ("involuntary full rematerialization").
    """
    return constrain_replicated(jnp.asarray(table.embedding[...], table.dtype))


def _dense(
    config: ModelConfig,
    name: str,
    inputs: int,
    outputs: int,
    rngs: nnx.Rngs,
    *,
    residual: bool = False,
) -> nnx.Linear:
    """A dense layer with GPT-2's initial weights; those of residual branches shrink with depth.

    `name` is one of LORA_TARGETS, or head.
    """
    std = _INIT_STD / math.sqrt(2 * config.n_layer) if residual else _INIT_STD
    options: dict[str, Any] = {
        "use_bias": config.bias,
        "dtype": _dtype(config),
        "kernel_init": nnx.initializers.normal(std),
    }
    if config.lora.adapts(name):
        return LoraLinear(inputs, outputs, config.lora, rngs=rngs, **options)
    return nnx.Linear(inputs, outputs, rngs=rngs, **options)


def _norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
    options: Any = {"epsilon": config.norm_epsilon, "dtype": _dtype(config), "rngs": rngs}
    if config.norm_type == "rmsnorm":
        return nnx.RMSNorm(config.n_embd, **options)
    return nnx.LayerNorm(config.n_embd, use_bias=config.bias, **options)


def _head(config: ModelConfig, vocab_size: int, rngs: nnx.Rngs) -> nnx.Linear:
    """An output layer of its own, with the initial weights of a token table."""
    return _dense(dataclasses.replace(config, bias=False), "head", config.n_embd, vocab_size, rngs)


def _dtype(config: ModelConfig) -> Any:
    """The dtype that layers compute in; None is the parameters' dtype, float32."""
    return jnp.bfloat16 if config.dtype == "bfloat16" else None
