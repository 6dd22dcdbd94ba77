"""Faulty models of flax.linen."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from audit_cases import KEY, TOKENS, Case, at_steps

from linen_models import arguments_of, make_params, rate_arguments_of, train_step


class UnreadRate(nn.Module):
    """The rate of the feed-forward layer is a field that no layer takes."""

    attention_rate: float = 0.1
    feedforward_rate: float = 0.1

    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(self.attention_rate, deterministic=False)(nn.Dense(64)(x))
        return nn.Dense(64)(nn.gelu(nn.Dense(64)(x)))


def set_feedforward_rate(rate):  # D01
    return train_step(UnreadRate(feedforward_rate=rate))


class Dropped(nn.Module):
    """A layer whose flag comes from the caller."""

    rate: float = 0.2

    @nn.compact
    def __call__(self, x, deterministic=True):
        return nn.Dropout(self.rate)(nn.Dense(64)(x), deterministic=deterministic)


class FlagIsNotPassedOn(nn.Module):
    """A block that takes a flag, and calls its layer without it."""

    @nn.compact
    def __call__(self, x, deterministic=True):
        return Dropped()(x)


@jax.jit  # D02
def flag_is_not_passed_on(params, x, key):
    def loss(params):
        y: Any = FlagIsNotPassedOn().apply(params, x, deterministic=False, rngs={"dropout": key})
        return jnp.square(y).mean()

    return jax.grad(loss)(params)


class AlwaysOn(nn.Module):
    """Dropout with deterministic=False written into the model."""

    @nn.compact
    def __call__(self, x):
        h = nn.tanh(nn.Dense(64)(x))
        return nn.Dropout(0.2, deterministic=False)(h)  # D03


def evaluate(params, x, key):
    return AlwaysOn().apply(params, x, rngs={"dropout": key})


class KeyOfTheState(nn.Module):
    """A correct model; its step is given the key of the state, which nobody moves on."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(64)(x)
        return nn.Dropout(0.2, deterministic=False)(h)  # D04


def same_key(step):
    return make_params(KeyOfTheState()), TOKENS, KEY


class Layer(nn.Module):
    """One layer of a scan."""

    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dropout(0.2, deterministic=False)(nn.Dense(64)(x))), None  # D05


class ScanWithoutSplit(nn.Module):
    """Layers in nn.scan, with remat, that all have the key of the scan."""

    @nn.compact
    def __call__(self, x):
        rngs: Any = {"params": True, "dropout": False}
        block = nn.remat(Layer, prevent_cse=False)
        return nn.scan(block, variable_axes={"params": 0}, split_rngs=rngs, length=3)()(x, None)[0]


class TwoLayersWithOneKey(nn.Module):
    """The key is made once and given to both."""

    @nn.compact
    def __call__(self, x):
        key = self.make_rng("dropout")
        x = nn.Dropout(0.2, deterministic=False)(nn.Dense(64)(x), rng=key)
        return nn.Dropout(0.2, deterministic=False)(nn.Dense(64)(x), rng=key)  # D05


class DefaultOfAttention(nn.Module):
    """Attention with broadcast_dropout=True, which is the default."""

    @nn.compact
    def __call__(self, x):
        attention = nn.MultiHeadDotProductAttention(4, dropout_rate=0.2, deterministic=False)
        return attention(x)  # D06


class Row(nn.Module):
    """One row of a batch."""

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.2, deterministic=False)(nn.Dense(64)(x))  # D06


class RowsWithoutSplit(nn.Module):
    """nn.vmap over the rows, which all have the key of the batch."""

    @nn.compact
    def __call__(self, x):
        rngs: Any = {"params": False, "dropout": False}
        return nn.vmap(Row, variable_axes={"params": None}, split_rngs=rngs)()(x)


class KeepProbability(nn.Module):
    """nn.Dropout takes a rate and gets the share to keep."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(64)(x)
        return nn.Dropout(1 - self.rate, deterministic=False)(h)  # D09


class OwnDropoutWithoutScale(nn.Module):
    """A layer of dropout, written by hand, that does not scale."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(64)(x)
        keep = jax.random.bernoulli(self.make_rng("dropout"), 0.8, h.shape)  # D10
        return h * keep


class OwnDropoutOfBfloat16(nn.Module):
    """A layer of dropout that draws in the dtype of the layer."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(64, dtype=jnp.bfloat16)(x)
        numbers = jax.random.uniform(self.make_rng("dropout"), h.shape, h.dtype)
        return jnp.where(numbers >= 0.1, h / 0.9, 0).astype(jnp.float32)  # D11


class SampledGate(nn.Module):
    """A mixture of experts with noise on its gate, in evaluation too."""

    @nn.compact
    def __call__(self, x):
        scores = nn.Dense(4)(x)
        noise = jax.random.normal(self.make_rng("dropout"), scores.shape)  # D13
        return nn.softmax(scores + noise)


def gate(params, x, key):
    return SampledGate().apply(params, x, rngs={"dropout": key})


class KeyOfTheEpoch(nn.Module):
    """A correct model; its trainer folds the number of the batch in the epoch into the key."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(64)(x)
        return nn.Dropout(0.2, deterministic=False)(h)  # D14


def second_epoch(step):
    return make_params(KeyOfTheEpoch()), TOKENS, jax.random.fold_in(KEY, step % 2)


class SeedInside(nn.Module):
    """A model that makes its key of a number."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(64)(x)
        return nn.Dropout(0.2, deterministic=False)(h, rng=jax.random.PRNGKey(0))  # D15


def faulty(code, model, about, **kwargs):
    """The case of a model in the training step."""
    return Case(model, arguments_of(model), code, about, **kwargs)


def keyed(model, args_at):
    return lambda: {"train_step": train_step(model()), "args_at": args_at}


def evaluated(model, evaluate):
    return lambda: {"eval_step": evaluate, "eval_args": (make_params(model()), TOKENS, KEY)}


CASES = [
    Case(
        set_feedforward_rate,
        lambda: {
            "train_step": set_feedforward_rate(0.1),
            "args_at": at_steps(make_params(UnreadRate()), TOKENS),
            "rates": {"feedforward": set_feedforward_rate},
        },
        "D01",
        "no layer takes feedforward_dropout",
    ),
    Case(
        flag_is_not_passed_on,
        lambda: {
            "train_step": flag_is_not_passed_on,
            "args_at": at_steps(make_params(FlagIsNotPassedOn()), TOKENS),
        },
        "D02",
        "`deterministic` is not passed on",
        is_quick=True,
    ),
    Case(AlwaysOn, evaluated(AlwaysOn, evaluate), "D03", "deterministic=False in the model"),
    Case(KeyOfTheState, keyed(KeyOfTheState, same_key), "D04", "the key of the state stays"),
    Case(
        Layer,
        arguments_of(ScanWithoutSplit),
        "D05",
        "nn.scan with split_rngs={'dropout': False}",
        "scan_without_split",
        is_quick=True,
    ),
    faulty("D05", TwoLayersWithOneKey, "one make_rng for two layers"),
    faulty("D06", DefaultOfAttention, "broadcast_dropout=True, the default of attention"),
    Case(Row, arguments_of(RowsWithoutSplit), "D06", "nn.vmap without split", "rows_without_split"),
    Case(
        KeepProbability,
        rate_arguments_of(KeepProbability),
        "D09",
        "the share to keep in place of the rate",
    ),
    faulty("D10", OwnDropoutWithoutScale, "no scale"),
    faulty("D11", OwnDropoutOfBfloat16, "a uniform of bfloat16 against 0.1"),
    Case(SampledGate, evaluated(SampledGate, gate), "D13", "the gate is noisy in evaluation"),
    Case(KeyOfTheEpoch, keyed(KeyOfTheEpoch, second_epoch), "D14", "the batch of the epoch"),
    faulty("D15", SeedInside, "PRNGKey(0) in the model"),
]
