"""Correct functions of Haiku."""

import haiku as hk
import jax
import jax.numpy as jnp
from audit_cases import KEY, Case, X

from haiku_models import arguments_of, evaluation, make_params, rate_arguments_of


def layers(x):
    for _ in range(2):
        x = hk.dropout(hk.next_rng_key(), 0.2, jnp.tanh(hk.Linear(64)(x)))
    return x


def layer_stack(x):
    @hk.layer_stack(3)
    def layer(x):
        return hk.dropout(hk.next_rng_key(), 0.2, jnp.tanh(hk.Linear(64)(x)))

    return layer(x)


def remat(x):
    def layer(x):
        return hk.dropout(hk.next_rng_key(), 0.2, jnp.tanh(hk.Linear(64)(x)))

    return hk.Linear(64)(hk.remat(layer)(x))


def rows(x):
    linear = hk.Linear(64)

    def row(x):
        return hk.dropout(hk.next_rng_key(), 0.2, linear(x))

    return hk.vmap(row, split_rng=not hk.running_init())(x)


def declared_columns(x):
    h = hk.Linear(64)(x)
    return hk.dropout(hk.next_rng_key(), 0.2, h, broadcast_dims=(0,))


def drop_path(x):
    keep = jax.random.bernoulli(hk.next_rng_key(), 0.8, (len(x), 1))
    return x + jnp.where(keep, hk.Linear(64)(x) / 0.8, 0)


def rated(rate, x):
    return hk.dropout(hk.next_rng_key(), rate, hk.Linear(64)(x))


def classify(x, is_training=True):
    h = jnp.tanh(hk.Linear(64)(x))
    return hk.dropout(hk.next_rng_key(), 0.2, h) if is_training else h


def evaluation_arguments():
    def evaluated(x):
        return classify(x, is_training=False)

    return arguments_of(classify)() | {
        "eval_step": evaluation(evaluated),
        "eval_args": (make_params(classify), X, KEY),
    }


def correct(forward, **kwargs):
    return Case(forward, arguments_of(forward), **kwargs)


CASES = [
    correct(layers, is_quick=True),
    correct(layer_stack),
    correct(remat),
    correct(rows),
    correct(declared_columns),
    correct(drop_path),
    Case(rated, rate_arguments_of(rated)),
    Case(classify, evaluation_arguments, name="classify_and_evaluation"),
]
