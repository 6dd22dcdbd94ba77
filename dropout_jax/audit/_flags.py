"""Follow flags, such as a padding mask, and the data that is multiplied with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from dropout_jax.audit._values import Value

_OF_FLAGS = {
    "broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "dynamic_slice",
    "convert_element_type", "stop_gradient", "sharding_constraint", "concatenate", "copy", "split",
    "and", "or", "not", "mul", "max", "min", "sub", "div", "select_n",
}  # fmt: skip
_COMPARISONS = {"lt", "le", "gt", "ge", "eq", "ne"}


def are_flags(array: Any) -> bool:
    """Whether an argument is booleans, or floats of which some are 0 and the others 1."""
    if isinstance(array, jax.ShapeDtypeStruct) or not np.ndim(array):
        return False
    if array.dtype == bool:
        return True
    if not jax.numpy.issubdtype(array.dtype, np.floating):
        return False
    return set(np.unique(np.asarray(array)).tolist()) == {0.0, 1.0}


def is_flag_result(equation: core.JaxprEqn, values: Sequence[Value]) -> bool:
    """Whether results are flags: comparisons of integers, and functions of flags."""
    name = equation.primitive.name
    arrays = [value for value in values if value.axes]
    if name in _COMPARISONS:
        return bool(arrays) and any(value.arguments for value in arrays) and _are_integers(equation)
    return name in _OF_FLAGS and bool(arrays) and all(value.is_flag for value in arrays)


def _are_integers(equation: core.JaxprEqn) -> bool:
    kinds = (getattr(atom.aval, "dtype", None) for atom in equation.invars)
    return all(isinstance(kind, np.dtype) and kind.kind in "iub" for kind in kinds)


def with_flags(equation: core.JaxprEqn, values: Sequence[Value], result: Value) -> Value:
    """Return a product of data with flags, or what flags choose from data and 0: masked data."""
    flags = [value for value in values if value.is_flag and value.axes]
    data = [value for value in values if value.is_array_of_data and not value.is_flag]
    if len(flags) != 1 or len(data) != 1 or equation.primitive.name == "div":
        return result
    if equation.primitive.name == "select_n" and not any(v.constant == 0 for v in values[1:]):
        return result
    applied = frozenset((name, False) for name, _ in flags[0].applied | data[0].applied)
    return dataclasses.replace(result, is_masked=True, applied=applied)
