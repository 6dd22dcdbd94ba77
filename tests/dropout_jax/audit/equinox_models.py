"""Training steps of models of Equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
from audit_cases import KEY, X, at_steps


class Model(eqx.Module):
    """A linear layer and dropout, for one row."""

    linear: eqx.nn.Linear
    drop: eqx.nn.Dropout

    def __init__(self, rate=0.2):
        self.linear = eqx.nn.Linear(64, 64, key=KEY)
        self.drop = eqx.nn.Dropout(rate)

    def __call__(self, x, key):
        return self.drop(jnp.tanh(self.linear(x)), key=key)  # D06


def rows_of(key, rows):
    """A key for each row, and the axis of vmap."""
    return jax.random.split(key, rows), 0


def train_step(keys_of=rows_of):
    """A step of a model, data and key."""

    @eqx.filter_jit
    def step(model, x, key):
        keys, axis = keys_of(key, len(x))

        def loss(model):
            return (jax.vmap(model, (0, axis))(x, keys) ** 2).mean()

        return eqx.filter_value_and_grad(loss)(model)

    return step


def arguments_of(build, **kwargs):
    """What `check` is called with for a model, which is built when it is asked."""
    return lambda: {"train_step": train_step(**kwargs), "args_at": at_steps(build(), X)}
