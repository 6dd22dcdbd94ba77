"""The GPT: GPT-2's architecture in flax.nnx, with dropout at every site.

model(tokens, key=key) trains, model(tokens, key=None) evaluates; the modules hold no random state.
Pre-norm blocks, learned positions, GELU in its tanh form, the head tied to the token table.

Each site folds its own name into the key, so that masks differ by site and layer, and adding a site
changes no other: "embed"; ("block", i, site) for attn_weights, attn_out, mlp_hidden, mlp_out; and
("block", i, "drop_path", branch) for the branches "attn" and "mlp".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from dropout_jax import dot_product_attention, drop_path, dropout, fold
from minigpt.config import ModelConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

_INIT_STD = 0.02


class GPT(nnx.Module):
    """Tokens to logits."""

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        init = nnx.initializers.normal(_INIT_STD)
        self.tokens = nnx.Embed(vocab_size, config.n_embd, embedding_init=init, rngs=rngs)
        self.positions = nnx.Embed(config.block_size, config.n_embd, embedding_init=init, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_layer)])
        self.norm = _layer_norm(config, rngs)

    def __call__(
        self, tokens: Int[Array, "batch time"], *, key: jax.Array | None
    ) -> Float[Array, "batch time vocab"]:
        """Logits of the next token at every position; `key=None` turns dropout off."""
        if tokens.shape[1] > self.config.block_size:
            raise ValueError(
                f"tokens.shape={tokens.shape} is not allowed: there are "
                f"block_size={self.config.block_size} positions. Cut the text: tokens[:, -n:]."
            )
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        x = dropout(x, self.config.dropout.embed, key=fold(key, "embed"))
        for i, block in enumerate(self.blocks):
            x = block(x, key=fold(key, "block", i))
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
        self, x: Float[Array, "batch time dim"], *, key: jax.Array | None
    ) -> Float[Array, "batch time dim"]:
        """Both branches, each added to what came in."""
        attended = self.attn(self.attn_norm(x), key=key)
        x = x + drop_path(attended, self.rate, key=fold(key, "drop_path", "attn"))
        transformed = self.mlp(self.mlp_norm(x), key=key)
        return x + drop_path(transformed, self.rate, key=fold(key, "drop_path", "mlp"))


class Attention(nnx.Module):
    """Causal self-attention with dropout on the weights and on the output."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.qkv = _dense(config, config.n_embd, 3 * config.n_embd, rngs)
        self.out = _dense(config, config.n_embd, config.n_embd, rngs, residual=True)

    def __call__(
        self, x: Float[Array, "batch time dim"], *, key: jax.Array | None
    ) -> Float[Array, "batch time dim"]:
        """Mix each position with those before it."""
        batch, time, dim = x.shape
        heads = self.config.n_head
        query, keys, values = jnp.split(_flat(self.qkv, x), 3, axis=-1)
        query, keys, values = (
            each.reshape(batch, time, heads, dim // heads) for each in (query, keys, values)
        )
        rates = self.config.dropout
        context = dot_product_attention(
            query,
            keys,
            values,
            is_causal=True,
            dropout_rate=rates.attn_weights,
            dropout_key=fold(key, "attn_weights"),
        )
        context = context.reshape(x.shape)
        return dropout(_flat(self.out, context), rates.attn_out, key=fold(key, "attn_out"))


class MLP(nnx.Module):
    """Four times wider and back, with dropout on the hidden layer and on the output."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.rates = config.dropout
        self.wide = _dense(config, config.n_embd, 4 * config.n_embd, rngs)
        self.out = _dense(config, 4 * config.n_embd, config.n_embd, rngs, residual=True)

    def __call__(
        self, x: Float[Array, "batch time dim"], *, key: jax.Array | None
    ) -> Float[Array, "batch time dim"]:
        """Transform each position by itself."""
        hidden = nnx.gelu(_flat(self.wide, x), approximate=True)
        hidden = dropout(hidden, self.rates.mlp_hidden, key=fold(key, "mlp_hidden"))
        return dropout(_flat(self.out, hidden), self.rates.mlp_out, key=fold(key, "mlp_out"))


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
