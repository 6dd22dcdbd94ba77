"""Dropout beside jax.random.bernoulli, and fused with its neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from dropout_jax import dropout
from program import MIB, Program
from targets import Chip, abstract_array, abstract_key

RATE = 0.1
SHAPES = (8192, 4096), (8, 1024, 768)
DTYPES = "bfloat16", "float32"


def dropout_programs(chip: Chip, *, full: bool) -> Iterator[Program]:
    """On a v5e the cycles of both; there and on an H100 one kernel for gelu, dropout and add.

    The short form compiles one shape and dtype for a v5e.
    """
    device = chip.topology(1).devices[0]
    for shape, dtype in itertools.product(SHAPES, DTYPES):
        x = abstract_array(device, shape, dtype)
        where = f"{' x '.join(map(str, shape))}, {dtype}"
        # XLA:TPU compiles the large shape in 17 s and the small one in four, XLA:GPU both in two.
        if chip.is_tpu and not full and (shape, dtype) != (SHAPES[1], "bfloat16"):
            continue
        yield _program(f"gelu, dropout, add, {where}", _gelu_dropout_add, x, whole_arrays=1)
        if chip.is_tpu:
            for mode in ("forward", "gradient"):
                rival = f"bernoulli, {where}, {mode}"
                yield _program(rival, MODES[mode](_bernoulli), x)
                yield _program(f"dropout, {where}, {mode}", MODES[mode](_dropout), x, rival=rival)


def _program(name: str, fn: Callable, x: Any, **checks: Any) -> Program:
    def lower() -> jax.stages.Lowered:
        return jax.jit(fn).lower(abstract_key(x.sharding), x)

    bound = 5 * x.size * x.dtype.itemsize / MIB
    return Program("dropout", name, lower, bound, elements=x.size, **checks)


def _dropout(key: jax.Array, x: jax.Array) -> jax.Array:
    return dropout(x, RATE, key=key)


def _bernoulli(key: jax.Array, x: jax.Array) -> jax.Array:
    keep = jax.random.bernoulli(key, 1 - RATE, x.shape)
    return jnp.where(keep, x / (1 - RATE), 0).astype(x.dtype)


def _gelu_dropout_add(key: jax.Array, x: jax.Array) -> jax.Array:
    return dropout(jax.nn.gelu(x), RATE, key=key) + x


def _gradient(op: Callable) -> Callable:
    def gradient(key: jax.Array, x: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: op(key, x), x)[1](x)[0]

    return gradient


MODES = {"forward": lambda op: op, "gradient": _gradient}
