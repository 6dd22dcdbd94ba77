"""Faulty seeds of kernels and foreign calls, whose masks nobody sees."""

import jax
import jax.numpy as jnp
import numpy as np

from kernel_models import evaluation_case, foreign, kernel, seed_of, step_case


def static_seed(x, key):
    return foreign(x, seed=np.int64(42), dropout_rate=0.1).sum()  # D04


def seed_of_the_program(x, key):
    return kernel(jnp.array([42], jnp.int32), x).sum()  # D04


def seed_of_a_constant(x, key):
    return kernel(seed_of(jax.random.key(0)), x).sum()  # D04


def one_seed_for_two_calls(x, key):
    seed = seed_of(key)
    return kernel(seed, jnp.tanh(kernel(seed, x))).sum()  # D05


def one_seed_in_scan(x, key):
    def layer(x, _):
        return kernel(seed_of(key), x), None  # D05

    return jax.lax.scan(layer, x, None, length=3)[0].sum()


def kernel_in_evaluation(x, key):
    return kernel(seed_of(key), x).sum()  # D03


CASES = [
    step_case(static_seed, "D04", "the seed of a foreign call is a number", is_quick=True),
    step_case(seed_of_the_program, "D04", "the seed of a kernel is a constant"),
    step_case(seed_of_a_constant, "D04", "the seed is drawn with key(0)"),
    step_case(one_seed_for_two_calls, "D05", "two kernels have one seed"),
    step_case(one_seed_in_scan, "D05", "a kernel in a scan has one seed"),
    evaluation_case(kernel_in_evaluation, "D03", "a kernel draws in evaluation"),
]
