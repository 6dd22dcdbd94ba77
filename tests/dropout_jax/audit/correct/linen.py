"""Correct models of flax.linen."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from audit_cases import KEY, TOKENS, Case, at_steps

from linen_models import arguments_of, make_params, rate_arguments_of, train_step


class Layers(nn.Module):
    """Layers in one compact module, each with its own key."""

    rate: float = 0.2
    deterministic: bool = False

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.Dropout(self.rate, deterministic=self.deterministic)(nn.Dense(64)(x))
        return nn.Dropout(self.rate, (1,), deterministic=self.deterministic)(x)


class Layer(nn.Module):
    """One layer of a scan."""

    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dropout(0.2, deterministic=False)(nn.Dense(64)(x))), None


class LayersInScan(nn.Module):
    """Layers in nn.scan, with remat, each with its own key."""

    @nn.compact
    def __call__(self, x):
        rngs: Any = {"params": True, "dropout": True}
        block = nn.remat(Layer, prevent_cse=False)
        return nn.scan(block, variable_axes={"params": 0}, split_rngs=rngs, length=3)()(x, None)[0]


class Transformer(nn.Module):
    """A block of a transformer, with masks for every row and head."""

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        attention = nn.MultiHeadDotProductAttention(
            4, dropout_rate=0.2, broadcast_dropout=False, deterministic=False
        )
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        h = nn.gelu(nn.Dense(128)(nn.LayerNorm()(x)))
        return x + nn.Dropout(0.1, deterministic=False)(nn.Dense(64)(h))


class DropPath(nn.Module):
    """Stochastic depth, as image models have it."""

    @nn.compact
    def __call__(self, x):
        keep = jax.random.bernoulli(self.make_rng("dropout"), 0.9, (x.shape[0], 1, 1))
        return x + nn.Dense(64)(x) * keep / 0.9


class Row(nn.Module):
    """One row of a batch."""

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.2, deterministic=False)(nn.Dense(64)(x))


class Rows(nn.Module):
    """nn.vmap over the rows, each with its own key."""

    @nn.compact
    def __call__(self, x):
        rngs: Any = {"params": False, "dropout": True}
        row = nn.vmap(Row, variable_axes={"params": None}, split_rngs=rngs)
        return row()(x)


class Recurrent(nn.Module):
    """An LSTM over the sequence, and dropout on its output."""

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.2, deterministic=False)(nn.RNN(nn.OptimizedLSTMCell(64))(x))


def evaluation(params, x, key):
    del key
    return Layers(deterministic=True).apply(params, x)


def correct(model, **kwargs):
    return Case(model, arguments_of(model), **kwargs)


CASES = [
    correct(Layers, is_quick=True),
    correct(LayersInScan),
    correct(Transformer),
    correct(DropPath),
    correct(Rows),
    correct(Recurrent),
    Case(Layers, rate_arguments_of(Layers), name="rate_of_every_layer"),
    Case(
        Layers,
        lambda: {"eval_step": evaluation, "eval_args": (make_params(Layers()), TOKENS, KEY)},
        name="deterministic_evaluation",
    ),
    Case(
        Layers,
        lambda: {
            "train_step": train_step(Layers()),
            "args_at": at_steps(make_params(Layers()), TOKENS),
            "resumed_args_at": at_steps(make_params(Layers()), TOKENS),
        },
        name="resumed",
    ),
]
