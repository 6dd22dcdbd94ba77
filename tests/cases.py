"""One registry of ops, shared by the tests and the benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import dropout_jax
from dropout_jax import reference


@dataclass(frozen=True)
class Op:
    """An op `fn(x, rate, *, key)`, its NumPy twin, and shapes it takes."""

    name: str
    fn: Callable
    oracle: Callable
    shapes: tuple[tuple[int, ...], ...] = ((), (7,), (3, 33), (2, 5, 64), (4, 3, 2, 40))

    def __str__(self):
        return self.name


def _variant(name, **options):
    fn, oracle = dropout_jax.dropout, reference.dropout
    return Op(
        name,
        lambda x, rate, *, key: fn(x, rate, key=key, **options),
        lambda x, rate, *, key: oracle(x, rate, key=key, **options),
        ((3, 33), (2, 5, 64)),
    )


OPS = [
    Op("dropout", dropout_jax.dropout, reference.dropout),
    _variant("dropout-shared-rows", broadcast_dims=(0,)),
    _variant("dropout-shared-columns", broadcast_dims=(-1,)),
]


def sample(shape, dtype="float32", seed=0):
    """Standard normals of a dtype, the same for every caller."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
