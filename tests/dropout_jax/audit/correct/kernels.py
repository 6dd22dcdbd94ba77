"""Correct seeds of kernels and foreign calls."""

import jax

from kernel_models import evaluation_case, foreign, kernel, seed_of, step_case


def own_seed(x, key):
    return kernel(seed_of(key), x).sum()


def own_seed_for_each_layer(x, key):
    def layer(x, key):
        return kernel(seed_of(key), x), None

    return jax.lax.scan(layer, x, jax.random.split(key, 3))[0].sum()


def seed_as_input_of_a_foreign_call(x, key):
    return foreign(x, seed_of(key), dropout_rate=0.1).sum()


def no_dropout(x, key):
    return foreign(x, dropout_rate=0.0).sum() + jax.random.normal(key, (2,)).sum()


CASES = [
    step_case(own_seed, is_quick=True),
    step_case(own_seed_for_each_layer),
    step_case(seed_as_input_of_a_foreign_call),
    evaluation_case(no_dropout),
]
