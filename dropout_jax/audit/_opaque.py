"""Calls whose random numbers nobody outside can see: kernels, foreign calls and callbacks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from dropout_jax.audit._graph import Opaque, Walk
from dropout_jax.audit._jaxprs import as_body, shape_of
from dropout_jax.audit._values import Kind, Value

_NAMES = ("pallas_call", "custom_call", "ffi_call", "callback", "cudnn", "dot_product_attention")
_PARAMS = ("seed", "dropout_rate", "name", "target_name", "call_target_name", "callback")
_GENERATORS = ("prng_seed", "prng_random_bits")  # of Pallas
_LARGEST_SEED = 64  # numbers: larger arrays of integers are data


def is_opaque(equation: core.JaxprEqn) -> bool:
    """Whether an equation may draw random numbers outside the program."""
    return any(part in equation.primitive.name for part in _NAMES)


def record_opaque(walk: Walk, equation: core.JaxprEqn, values: Sequence[Value]) -> None:
    """Record an opaque call, with its integer inputs, which may be seeds."""
    params = _read_params(equation)
    seeds = [
        (atom, value)
        for atom, value in zip(equation.invars, values, strict=True)
        if _may_be_seed(atom, value)
    ]
    arguments = 0
    for _, value in seeds:
        arguments |= value.arguments
    point = walk.point("seed", *(atom for atom, _ in seeds)) if seeds else None
    rate = params.get("dropout_rate")
    is_random = (isinstance(rate, int | float) and rate > 0) or _draws_inside(equation)
    walk.graph.opaque.append(
        Opaque(walk.trail, equation.primitive.name, params, arguments, point, is_random)
    )


def _may_be_seed(atom: Any, value: Value) -> bool:
    if value.kind == Kind.KEY:
        return True
    dtype = getattr(atom.aval, "dtype", None)
    is_integer = isinstance(dtype, np.dtype) and dtype.kind in "iu"
    return is_integer and math.prod(shape_of(atom)) <= _LARGEST_SEED


def _read_params(equation: core.JaxprEqn) -> dict[str, Any]:
    """Return the parameters that say something about randomness."""
    params = dict(equation.params)
    config, attributes = params.get("config"), params.get("attributes")
    if config is not None and hasattr(config, "_asdict"):
        params |= config._asdict()
    if attributes:
        params |= dict(attributes)
    return {name: params[name] for name in _PARAMS if params.get(name) is not None}


def _draws_inside(equation: core.JaxprEqn) -> bool:
    """Whether the program of a kernel has the generator of Pallas in it."""
    program = equation.params.get("jaxpr")
    return program is not None and any(
        inner.primitive.name in _GENERATORS for inner in _equations_in(as_body(program).jaxpr)
    )


def _equations_in(jaxpr: Any) -> Iterator[core.JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for param in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(param):
                yield from _equations_in(as_body(param).jaxpr)


def _is_program(value: Any) -> bool:
    return hasattr(as_body(value).jaxpr, "eqns")
