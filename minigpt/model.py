"""The GPT: GPT-2's architecture in flax.nnx, with dropout at every site.

model(tokens, key=key) trains, model(tokens, key=None) evaluates; the modules hold no random state.
model(tokens, key=None, masks=masks) trains with masks from anywhere, by the site's name (sites.py).
Pre-norm blocks, learned positions, GELU in its tanh form, the head tied to the token table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from dropout_jax import dot_product_attention
from minigpt.config import ModelConfig
from minigpt.sites import Site

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

_INIT_STD = 0.02


class GPT(nnx.Module):
    """Tokens to logits."""

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        self.tokens = _embed(config, vocab_size, rngs)
        self.positions = _embed(config, config.block_size, rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_layer)])
        self.norm = _layer_norm(config, rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        *,
        key: jax.Array | None,
        masks: Mapping[str, Any] | None = None,
        tape: dict[str, dict[str, jax.Array]] | None = None,
    ) -> Float[Array, "batch time vocab"]:
        """Logits of the next token at every position; `key=None` turns dropout off.

        `masks` decide instead of a key, and a `tape` gets what goes on at every site: see Site.
        """
        if tokens.shape[1] > self.config.block_size:
            raise ValueError(
                f"tokens.shape={tokens.shape} is not allowed: there are "
                f"block_size={self.config.block_size} positions. Cut the text: tokens[:, -n:]."
            )
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        root = Site(key, masks, tape)
        x = root.at("embed").dropout(x, self.config.dropout.embed)
        for i, block in enumerate(self.blocks):
            x = block(x, root.at("block", i))
        return _flat(self.tokens.attend, self.norm(x))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop_path drops a branch for a whole row."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.rate = config.dropout.drop_path
        self.attn_norm = _layer_norm(config, rngs)
        self.attn = Attention(config, rngs=rngs)
        self.mlp_norm = _layer_norm(config, rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch time dim"], site: Site
    ) -> Float[Array, "batch time dim"]:
        """Both branches, each added to what came in."""
        attended = self.attn(self.attn_norm(x), site)
        x = x + site.at("drop_path", "attn").drop_path(attended, self.rate)
        transformed = self.mlp(self.mlp_norm(x), site)
        return x + site.at("drop_path", "mlp").drop_path(transformed, self.rate)


class Attention(nnx.Module):
    """Causal self-attention with dropout on the weights and on the output."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.qkv = _dense(config, config.n_embd, 3 * config.n_embd, rngs)
        self.out = _dense(config, config.n_embd, config.n_embd, rngs, residual=True)

    def __call__(
        self, x: Float[Array, "batch time dim"], site: Site
    ) -> Float[Array, "batch time dim"]:
        """Mix each position with those before it."""
        batch, time, dim = x.shape
        heads = self.config.n_head
        query, keys, values = jnp.split(_flat(self.qkv, x), 3, axis=-1)
        query, keys, values = (
            each.reshape(batch, time, heads, dim // heads) for each in (query, keys, values)
        )
        rates = self.config.dropout
        context = _mix(query, keys, values, rates.attn_weights, site.at("attn_weights"))
        out = _flat(self.out, context.reshape(x.shape))
        return site.at("attn_out").dropout(out, rates.attn_out)


class MLP(nnx.Module):
    """Four times wider and back, with dropout on the hidden layer and on the output."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.rates = config.dropout
        self.wide = _dense(config, config.n_embd, 4 * config.n_embd, rngs)
        self.out = _dense(config, 4 * config.n_embd, config.n_embd, rngs, residual=True)

    def __call__(
        self, x: Float[Array, "batch time dim"], site: Site
    ) -> Float[Array, "batch time dim"]:
        """Transform each position by itself."""
        hidden = nnx.gelu(_flat(self.wide, x), approximate=True)
        hidden = site.at("mlp_hidden").dropout(hidden, self.rates.mlp_hidden)
        return site.at("mlp_out").dropout(_flat(self.out, hidden), self.rates.mlp_out)


def _mix(query, keys, values, rate: float, site: Site):
    """Causal attention; the weights are written out only where the site must hold them."""
    if site.plain:
        return dot_product_attention(
            query, keys, values, is_causal=True, dropout_rate=rate, dropout_key=site.key
        )
    time, dim = query.shape[1], query.shape[-1]
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys) / math.sqrt(dim)
    seen = jnp.tril(jnp.ones((time, time), bool))
    weights = nnx.softmax(jnp.where(seen, scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhd->bqhd", site.dropout(weights, rate), values)


def _embed(config: ModelConfig, rows: int, rngs: nnx.Rngs) -> nnx.Embed:
    init = nnx.initializers.normal(_INIT_STD)
    table = nnx.Embed(rows, config.n_embd, embedding_init=init, rngs=rngs)
    table.dtype = None  # the table's own, whatever it is cast to; Embed fixes it at birth
    return table


def _dense(config: ModelConfig, inputs: int, outputs: int, rngs: nnx.Rngs, residual=False):
    """A dense layer with GPT-2's initial weights: residual ones smaller, by depth."""
    std = _INIT_STD / math.sqrt(2 * config.n_layer) if residual else _INIT_STD
    init = nnx.initializers.normal(std)
    return nnx.Linear(inputs, outputs, use_bias=config.bias, kernel_init=init, rngs=rngs)


def _layer_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.n_embd, epsilon=1e-5, use_bias=config.bias, rngs=rngs)


def _flat(layer, x):
    """Apply a dense layer to (batch * time, dim): a plain matrix product is faster on a CPU."""
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
