"""The GPT: GPT-2's architecture in flax.nnx, with dropout at every site.

model(tokens, key=key) trains, model(tokens, key=None) evaluates; the modules hold no random state.
model(tokens, key=None, masks=masks) trains with masks from anywhere, by the site's name (sites.py).
Pre-norm blocks (or post-norm), learned positions, GELU in its tanh form, the head tied to the token
table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from dropout_jax import dot_product_attention
from minigpt.config import DropoutConfig, ModelConfig
from minigpt.distributed import constrain_batch_sharding
from minigpt.model.dropout_sites import DropoutSite

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

_INIT_STD = 0.02


class GPT(nnx.Module):
    """Tokens to logits."""

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        self.tokens = _embed(config, vocab_size, rngs)
        self.positions = _embed(config, config.block_size, rngs)
        blocks = [Block(config, rngs=rngs) for _ in range(config.n_layer)]
        self.blocks: Any = _stack_blocks(blocks) if config.scan_layers else nnx.List(blocks)
        self.norm = _layer_norm(config, rngs) if config.norm == "pre" else None

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        *,
        key: jax.Array | None,
        masks: Mapping[str, Any] | None = None,
        tape: dict[str, dict[str, jax.Array]] | None = None,
        start: jax.Array | None = None,
    ) -> Float[Array, "batch time vocab"]:
        """Logits of the next token at every position; `key=None` turns dropout off.

        `masks` decide instead of a key, a `tape` gets what goes on at every site, and `start` is
        the row of a larger batch at which this one begins: see Site.
        """
        features = self.features(tokens, key=key, masks=masks, tape=tape, start=start)
        logits = _apply_per_token(self.tokens.attend, features)
        return logits.astype(jnp.promote_types(logits.dtype, "float32"))

    def features(
        self,
        tokens: Int[Array, "batch time"],
        *,
        key: jax.Array | None,
        masks: Mapping[str, Any] | None = None,
        tape: dict[str, dict[str, jax.Array]] | None = None,
        start: jax.Array | None = None,
    ) -> Float[Array, "batch time dim"]:
        """What the head is given: a vector at every position, of the text up to it."""
        if tokens.shape[1] > self.config.block_size:
            raise ValueError(
                f"tokens.shape={tokens.shape} is not allowed: there are "
                f"block_size={self.config.block_size} positions. Cut the text: tokens[:, -n:]."
            )
        x = constrain_batch_sharding(
            self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        )
        root = DropoutSite(key, masks, tape, start=start)
        x = root.at("embed").dropout(x, self.config.dropout.embed)
        x = self._through_blocks(x, root)
        return self.norm(x) if self.norm else x

    def _through_blocks(self, x, root: DropoutSite):
        """One block after the other, with or without scan and remat; masks are the same."""
        config = self.config
        if not root.plain or not (config.remat or config.scan_layers):
            for i, block in enumerate(self._unstacked()):
                x = block(x, root.at("block", i))
            return x

        def apply(x, layer):
            params, i = layer
            return nnx.merge(graph, params)(x, root.at("block", i)), None

        if config.remat:
            apply = jax.checkpoint(apply)
        if config.scan_layers:
            graph, stacked = nnx.split(self.blocks)
            return lax.scan(apply, x, (stacked, jnp.arange(config.n_layer, dtype=jnp.uint32)))[0]
        for i, block in enumerate(self.blocks):
            graph, params = nnx.split(block)  # every block has the same structure
            x, _ = apply(x, (params, i))
        return x

    def _unstacked(self) -> Iterable[Block]:
        if not self.config.scan_layers:
            return self.blocks
        graph, stacked = nnx.split(self.blocks)

        def layer(i: int) -> Block:
            return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[i], stacked))

        return map(layer, range(self.config.n_layer))


def set_rates(model: GPT, rates: DropoutConfig) -> None:
    """Give a model other rates; if traced, one compiled step serves them all. Not with scan_layers.

    >>> model = GPT(ModelConfig(1, 1, 8, 4), vocab_size=5, rngs=nnx.Rngs(0))
    >>> set_rates(model, DropoutConfig.uniform(0.5))
    >>> model.config.dropout.embed
    0.5
    """
    model.config = config = dataclasses.replace(model.config, dropout=rates)
    for block in model.blocks:
        block.rate, block.attn.config, block.mlp.rates = rates.drop_path, config, rates


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop_path drops a branch for a whole row.

    Post-norm: norm(x + attention(x)), then norm(x + mlp(x)).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.rate, self.pre = config.dropout.drop_path, config.norm == "pre"
        self.attn_norm = _layer_norm(config, rngs)
        self.attn = Attention(config, rngs=rngs)
        self.mlp_norm = _layer_norm(config, rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time dim"], site: DropoutSite
    ) -> Float[Array, "batch time dim"]:
        """Both branches, each added to what came in."""
        x = self._add("attn", self.attn_norm, self.attn, x, site)
        return self._add("mlp", self.mlp_norm, self.mlp, x, site)

    def _add(self, name: str, norm, branch, x, site: DropoutSite):
        transformed = branch(norm(x) if self.pre else x, site)
        x = constrain_batch_sharding(
            x + site.at("drop_path", name).drop_path(transformed, self.rate)
        )
        return x if self.pre else constrain_batch_sharding(norm(x))


class Attention(nnx.Module):
    """Causal self-attention with dropout on the weights, the context vectors and the output."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.qkv = _dense(config, config.n_embd, 3 * config.n_embd, rngs)
        self.out = _dense(config, config.n_embd, config.n_embd, rngs, residual=True)

    def __call__(
        self, x: Float[Array, "batch time dim"], site: DropoutSite
    ) -> Float[Array, "batch time dim"]:
        """Mix each position with those before it."""
        batch, time, dim = x.shape
        heads = self.config.n_head
        query, keys, values = jnp.split(_apply_per_token(self.qkv, x), 3, axis=-1)
        query, keys, values = (
            each.reshape(batch, time, heads, dim // heads) for each in (query, keys, values)
        )
        rates = self.config.dropout
        context = _attend(query, keys, values, rates.attn_weights, site.at("attn_weights"))
        context = context.reshape(x.shape)
        context = site.at("attn_context").dropout(context, rates.attn_context)
        out = _apply_per_token(self.out, context)
        return site.at("attn_out").dropout(out, rates.attn_out)


class MLP(nnx.Module):
    """Four times wider and back, with dropout on the hidden layer and on the output."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.rates = config.dropout
        self.wide = _dense(config, config.n_embd, 4 * config.n_embd, rngs)
        self.out = _dense(config, 4 * config.n_embd, config.n_embd, rngs, residual=True)

    def __call__(
        self, x: Float[Array, "batch time dim"], site: DropoutSite
    ) -> Float[Array, "batch time dim"]:
        """Transform each position by itself."""
        hidden = nnx.gelu(_apply_per_token(self.wide, x), approximate=True)
        hidden = site.at("mlp_hidden").dropout(hidden, self.rates.mlp_hidden)
        return site.at("mlp_out").dropout(_apply_per_token(self.out, hidden), self.rates.mlp_out)


def _stack_blocks(blocks: list[Block]) -> Block:
    """One block whose every array has the layers as its first axis."""
    graph, layers = nnx.split(blocks[0])[0], [nnx.split(block)[1] for block in blocks]
    return nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))


def _attend(query, keys, values, rate: float, site: DropoutSite):
    """Causal attention; the weights are written out only where the site must hold them."""
    if site.plain:
        dropout = {"dropout_rate": rate, "dropout_key": site.key, "dropout_row_offset": site.start}
        return dot_product_attention(query, keys, values, is_causal=True, **dropout)
    time, dim = query.shape[1], query.shape[-1]
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys) / math.sqrt(dim)
    seen = jnp.tril(jnp.ones((time, time), bool))
    weights = nnx.softmax(jnp.where(seen, scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhd->bqhd", site.dropout(weights, rate), values)


def _embed(config: ModelConfig, rows: int, rngs: nnx.Rngs) -> nnx.Embed:
    init = nnx.initializers.normal(_INIT_STD)
    table = nnx.Embed(rows, config.n_embd, embedding_init=init, rngs=rngs)
    table.dtype = _dtype(config)  # Embed would take the table's at birth, whatever it is cast to
    return table


def _dense(config: ModelConfig, inputs: int, outputs: int, rngs: nnx.Rngs, residual=False):
    """A dense layer with GPT-2's initial weights: residual ones smaller, by depth."""
    std = _INIT_STD / math.sqrt(2 * config.n_layer) if residual else _INIT_STD
    init, dtype = nnx.initializers.normal(std), _dtype(config)
    return nnx.Linear(
        inputs, outputs, use_bias=config.bias, dtype=dtype, kernel_init=init, rngs=rngs
    )


def _layer_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    dtype = _dtype(config)
    return nnx.LayerNorm(config.n_embd, epsilon=1e-5, use_bias=config.bias, dtype=dtype, rngs=rngs)


def _dtype(config: ModelConfig):
    """What layers compute in; None, the parameters' own dtype, for float32."""
    return jnp.bfloat16 if config.dtype == "bfloat16" else None


def _apply_per_token(layer, x):
    """Apply a dense layer to (batch * time, dim): a plain matrix product is faster on a CPU."""
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
