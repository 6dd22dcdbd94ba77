"""Correct models of Equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
from audit_cases import KEY, TOKENS, Case, X, at_steps

from equinox_models import Model, arguments_of, train_step


class Layers(Model):
    """Layers, each with its own key."""

    def __call__(self, x, key):
        for own in jax.random.split(key, 2):
            x = self.drop(jnp.tanh(self.linear(x)), key=own)
        return x


class LayersInScan(Model):
    """Layers in a scan, each with its own key, and checkpointed."""

    def __call__(self, x, key):
        @eqx.filter_checkpoint
        def layer(x, key):
            return self.drop(jnp.tanh(self.linear(x)), key=key)

        keys = jax.random.split(key, 3)
        return jax.lax.scan(lambda x, key: (layer(x, key), None), x, keys)[0]


class Transformer(eqx.Module):
    """A sequence with attention and dropout."""

    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    drop: eqx.nn.Dropout

    def __init__(self):
        self.attention = eqx.nn.MultiheadAttention(4, 64, dropout_p=0.2, key=KEY)
        self.mlp = eqx.nn.MLP(64, 64, 128, 1, key=KEY)
        self.drop = eqx.nn.Dropout(0.2)

    def __call__(self, x, key):
        first, second = jax.random.split(key)
        x = x + self.attention(x, x, x, key=first)
        return x + self.drop(jax.vmap(self.mlp)(x), key=second)


class StochasticDepth(Model):
    """A residual layer that a row may skip."""

    def __call__(self, x, key):
        keep = jax.random.bernoulli(key, 0.8)
        return x + jnp.where(keep, jnp.tanh(self.linear(x)) / 0.8, 0)


def evaluation_arguments():
    step = train_step()
    inference = eqx.nn.inference_mode(Model())
    return {
        "train_step": step,
        "eval_step": step,
        "args_at": at_steps(Model(), X),
        "eval_args": (inference, X, KEY),
    }


def rate_arguments():
    def set_rate(rate):
        step = train_step()
        return lambda _, x, key: step(Model(rate), x, key)

    args_at = at_steps(Model(), X)
    return {"train_step": set_rate(0.5), "args_at": args_at, "rates": {"rate": set_rate}}


def correct(model, **kwargs):
    return Case(model, arguments_of(model), **kwargs)


CASES = [
    Case(Model, evaluation_arguments, name="model_and_inference_mode", is_quick=True),
    Case(Model, rate_arguments, name="rate_of_the_layer"),
    correct(Layers),
    correct(LayersInScan),
    correct(StochasticDepth),
    Case(
        Transformer,
        lambda: {"train_step": train_step(), "args_at": at_steps(Transformer(), TOKENS)},
    ),
]
