"""Faulty functions of Haiku."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
from audit_cases import KEY, Case, X, at_steps

from haiku_models import (
    arguments_of,
    evaluation,
    make_params,
    rate_arguments_of,
    train_step,
)


def block(attention_rate, residual_rate, x):
    x = hk.dropout(hk.next_rng_key(), residual_rate, hk.Linear(64)(x))
    return hk.dropout(hk.next_rng_key(), residual_rate, hk.Linear(64)(x))


def unread_rate(rate):  # D01
    return train_step(lambda x: block(rate, 0.1, x))


def classify(x, is_training=False):
    h = jnp.tanh(hk.Linear(64)(x))
    return hk.dropout(hk.next_rng_key(), 0.2, h) if is_training else h


def train_without_is_training(params, x, key):  # D02
    model = hk.transform(classify)
    return jax.grad(lambda params: (model.apply(params, key, x) ** 2).mean())(params)


def always_on(x):
    return hk.dropout(hk.next_rng_key(), 0.2, hk.Linear(64)(x))  # D03


def one_key_of_the_trainer(x):
    h = hk.Linear(64)(x)
    return hk.dropout(hk.next_rng_key(), 0.2, h)  # D04


def key_used_twice(x):
    key = hk.next_rng_key()
    x = hk.dropout(key, 0.2, jnp.tanh(hk.Linear(64)(x)))
    return hk.dropout(key, 0.2, jnp.tanh(hk.Linear(64)(x)))  # D05


def key_outside_of_scan(x):
    key = hk.next_rng_key()
    layers = [hk.Linear(64) for _ in range(2)]

    def layer(x, _):
        for linear in layers:
            x = jnp.tanh(linear(x))
        return hk.dropout(key, 0.2, x), None  # D05

    return hk.scan(layer, x, None, length=3)[0]


def rows_without_split(x):
    linear = hk.Linear(64)

    def row(x):
        return hk.dropout(hk.next_rng_key(), 0.2, linear(x))  # D06

    return hk.vmap(row, split_rng=False)(x)


def keep_probability(rate, x):
    return hk.dropout(hk.next_rng_key(), 1 - rate, hk.Linear(64)(x))  # D09


def scaled_again(x):
    return hk.dropout(hk.next_rng_key(), 0.2, hk.Linear(64)(x)) / 0.8  # D10


def numbers_of_bfloat16(x):
    h = hk.Linear(64)(x).astype(jnp.bfloat16)
    keep = jax.random.uniform(hk.next_rng_key(), h.shape, h.dtype) < 0.9  # D11
    return (keep * h / 0.9).astype(jnp.float32)


def sampled_latent(x):
    mean = hk.Linear(64)(x)
    return mean + jax.random.normal(hk.next_rng_key(), mean.shape)  # D13


def keys_of_the_epoch(x):
    h = hk.Linear(64)(x)
    return hk.dropout(hk.next_rng_key(), 0.2, h)  # D14


def seed_inside(x):
    return hk.dropout(jax.random.PRNGKey(42), 0.2, hk.Linear(64)(x))  # D15


def faulty(code, forward, about, **kwargs):
    """The case of a function in the training step."""
    return Case(forward, arguments_of(forward), code, about, **kwargs)


def keyed(forward, key_of):
    def args_at(step):
        return make_params(forward), X, key_of(step)

    return lambda: {"train_step": train_step(forward), "args_at": args_at}


def evaluated(forward):
    return lambda: {
        "eval_step": evaluation(forward),
        "eval_args": (make_params(forward), X, KEY),
    }


CASES = [
    Case(
        unread_rate,
        rate_arguments_of(functools.partial(block, 0.1), unread_rate),
        "D01",
        "no layer takes the rate of attention",
    ),
    Case(
        train_without_is_training,
        lambda: {
            "train_step": train_without_is_training,
            "args_at": at_steps(make_params(classify), X),
        },
        "D02",
        "is_training=False",
        is_quick=True,
    ),
    Case(always_on, evaluated(always_on), "D03", "no is_training"),
    Case(
        one_key_of_the_trainer,
        keyed(one_key_of_the_trainer, lambda step: KEY),
        "D04",
        "the trainer passes one key",
    ),
    faulty("D05", key_used_twice, "one next_rng_key for two layers", is_quick=True),
    faulty("D05", key_outside_of_scan, "next_rng_key before a scan"),
    faulty("D06", rows_without_split, "hk.vmap with split_rng=False"),
    Case(
        keep_probability,
        rate_arguments_of(keep_probability),
        "D09",
        "the share to keep in place of the rate",
    ),
    faulty("D10", scaled_again, "the block divides once more"),
    faulty("D11", numbers_of_bfloat16, "a uniform of bfloat16 against 0.9"),
    Case(sampled_latent, evaluated(sampled_latent), "D13", "a sampled latent in evaluation"),
    Case(
        keys_of_the_epoch,
        keyed(keys_of_the_epoch, lambda step: jax.random.fold_in(KEY, step % 2)),
        "D14",
        "the batch of the epoch is folded in",
    ),
    faulty("D15", seed_inside, "PRNGKey(42) in the model"),
]
