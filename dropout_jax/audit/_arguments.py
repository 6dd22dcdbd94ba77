"""Split a step's arguments into arrays, which a program takes, and the rest, which it contains."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Arguments(NamedTuple):
    """A step's arguments as arrays with names."""

    arrays: list[Any]
    names: tuple[str, ...]
    rebuild: Callable[[Sequence[Any]], tuple[tuple, dict[str, Any]]]


def split_arguments(
    step: Callable, args: Sequence[Any], kwargs: Mapping[str, Any], *, with_numbers: bool
) -> Arguments:
    """Split arguments; Python numbers count as arrays `with_numbers`, as in jax.jit."""
    leaves, tree = jax.tree.flatten_with_path((tuple(args), dict(kwargs)))
    is_array = [_is_array(leaf, with_numbers=with_numbers) for _, leaf in leaves]
    parameters = _parameter_names(step)
    names = [_name(path, parameters) for path, _ in leaves]

    def rebuild(arrays: Sequence[Any]) -> tuple[tuple, dict[str, Any]]:
        given = iter(arrays)
        pairs = zip(leaves, is_array, strict=True)
        return jax.tree.unflatten(tree, [next(given) if yes else leaf for (_, leaf), yes in pairs])

    chosen = [n for n, yes in enumerate(is_array) if yes]
    return Arguments([leaves[n][1] for n in chosen], tuple(names[n] for n in chosen), rebuild)


def _is_array(leaf: Any, *, with_numbers: bool) -> bool:
    if isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return True
    return with_numbers and isinstance(leaf, int | float | complex) and not isinstance(leaf, bool)


def _parameter_names(step: Callable) -> list[str]:
    try:
        parameters = inspect.signature(step).parameters.values()
    except (TypeError, ValueError):
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in positional]


def _name(path: Sequence[Any], parameters: list[str]) -> str:
    """Return a name such as "batch['tokens']" for the path of a leaf."""
    _, first, *rest = path
    number = getattr(first, "idx", None)
    if number is None:
        name = str(getattr(first, "key", first))
    else:
        name = f"args[{number}]" if number >= len(parameters) else str(parameters[number])
    return name + jax.tree_util.keystr(tuple(rest))
