"""The ops and layers of this package, and what its examples and minigpt make of them."""

import functools

import jax
import jax.numpy as jnp
from audit_cases import KEY, WEIGHTS, Case, X, at_steps, training_step

import dropout_jax

ATTENTION = functools.partial(dropout_jax.dot_product_attention, dropout_rate=0.2)
OPS = {
    "dropout": lambda x, key: dropout_jax.dropout(x, 0.2, key=key),
    "dropout_shared": lambda x, key: dropout_jax.dropout(x, 0.2, key=key, broadcast_dims=(0,)),
    "dropout_unscaled": lambda x, key: dropout_jax.dropout_unscaled(x, 0.2, key=key),
    "alpha_dropout": lambda x, key: dropout_jax.alpha_dropout(x, 0.2, key=key),
    "gaussian_dropout": lambda x, key: dropout_jax.gaussian_dropout(x, 0.2, key=key),
    "drop_path": lambda x, key: dropout_jax.drop_path(x, 0.2, key=key),
    "locked_dropout": lambda x, key: dropout_jax.locked_dropout(x[None], 0.2, key=key),
    "spatial_dropout": lambda x, key: dropout_jax.spatial_dropout(x[None], 0.2, key=key),
    "token_dropout": lambda x, key: dropout_jax.token_dropout(x[None], 0.2, key=key),
    "drop_block": lambda x, key: dropout_jax.drop_block(x.reshape(1, 16, 16, 4), 0.2, 3, key=key),
    "drop_connect": lambda x, key: x @ dropout_jax.drop_connect(WEIGHTS, 0.2, key=key),
    "attention": lambda x, key: ATTENTION(*[x.reshape(1, 64, 1, 16)] * 3, dropout_key=key),
    "blockwise": lambda x, key: ATTENTION(
        *[x.reshape(1, 64, 1, 16)] * 3, dropout_key=key, implementation="blockwise"
    ),
}
QUICK = {"dropout", "drop_path"}


def mask_that_is_asked_for(weights, x, key):
    h = x @ weights
    mask = dropout_jax.keep_mask(key, 0.2, h.shape)
    return dropout_jax.apply_mask(h, mask, 0.2)


def keys_by_name(weights, x, key):
    for layer in range(2):
        site = dropout_jax.fold(key, "block", layer, "attn_out")
        x = dropout_jax.dropout(x @ weights, 0.2, key=site)
    return x


def of_op(name):
    def model(weights, x, key):
        return OPS[name](x @ weights, key)

    return correct(model, name=name, is_quick=name in QUICK)


def correct(model, **kwargs):
    def arguments():
        return {"train_step": training_step(model), "args_at": at_steps(WEIGHTS, X)}

    return Case(model, arguments, **kwargs)


def scheduled(schedule):
    """The arguments of `check` for a rate that changes over the steps."""

    def step(rate, weights, x, key, number):
        return dropout_jax.dropout(x @ weights, schedule(rate)(number), key=key)

    def args_at(number):
        return WEIGHTS, X, jax.random.fold_in(KEY, number), jnp.int32(number)

    return lambda: {
        "train_step": functools.partial(step, 0.5),
        "args_at": args_at,
        "rates": {"rate": lambda rate: functools.partial(step, rate)},
    }


SCHEDULES = {
    "early_dropout": lambda rate: dropout_jax.early_dropout(rate, 2),
    "curriculum_dropout": lambda rate: dropout_jax.curriculum_dropout(rate, 0.1),
}

CASES = [
    *map(of_op, OPS),
    correct(mask_that_is_asked_for),
    correct(keys_by_name),
    *(Case(scheduled, scheduled(SCHEDULES[name]), name=name) for name in SCHEDULES),
]
