"""Trace a step into a program, and compile what computes its random decisions."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dropout_jax.audit._analysis import analyze
from dropout_jax.audit._arguments import Arguments, split_arguments
from dropout_jax.audit._graph import Graph
from dropout_jax.audit._harvest import Run
from dropout_jax.audit._jaxprs import Body
from dropout_jax.audit._liveness import Plan

# What JAX raises for a number that a step needs as a Python number.
_NEEDS_NUMBERS = (TypeError, ValueError, IndexError, jax.errors.ConcretizationTypeError)


class Program:
    """A step as a program, and its random parts.

    Args:
      step: a function of arrays.
      args: its arguments.
      kwargs: its arguments by name.
      keeps_masks: whether the masks are returned whole.
    """

    def __init__(
        self,
        step: Callable,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        keeps_masks: bool = False,
    ) -> None:
        self.closed, self.arguments = _trace_program(step, args, kwargs)
        self._keeps_masks = keeps_masks

    @functools.cached_property
    def graph(self) -> Graph:
        """The random parts of the program."""
        return analyze(self.closed, self.arguments.arrays)

    @functools.cached_property
    def _harvest(self) -> Any:
        """The compiled function of constants and arguments that computes the points."""
        plan = Plan(Body(self.closed.jaxpr, ()), self.graph.points)
        run = Run(plan, keeps_masks=self._keeps_masks)

        def harvest(consts: Sequence[Any], arrays: Sequence[Any]) -> Any:
            return run.evaluate(Body(self.closed.jaxpr, consts), arrays)[1]

        return jax.jit(harvest, compiler_options=_compiler_options())

    def run(self, program: Program | None = None) -> dict[int, dict[str, np.ndarray]]:
        """Compute the points, with the arguments of this program or of another that is equal."""
        program = program or self
        harvest = self._harvest(program.closed.consts, program.arguments.arrays)
        return jax.tree.map(np.asarray, harvest)

    def is_same_program(self, other: Program) -> bool:
        """Whether another program differs in the values of its arguments and constants only."""
        return self._text == other._text

    @functools.cached_property
    def _text(self) -> str:
        return re.sub("0x[0-9a-f]+", "", str(self.closed))


def _compiler_options() -> dict[str, Any]:
    """Compile a program that runs a few times quickly, where the compiler can."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}


def _trace_program(
    step: Callable, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, Arguments]:
    """Trace a step; a Python number is an array unless the step needs it as a number."""
    arguments = split_arguments(step, args, kwargs, with_numbers=True)
    try:
        return _make_jaxpr(step, arguments), arguments
    except _NEEDS_NUMBERS as error:
        if "set_mesh" in str(error):
            raise ValueError(
                f"step={step!r} is not allowed: it must not set a mesh itself, as it is traced. "
                "Set the mesh around the audit, and pass the function that runs in it: "
                "with jax.set_mesh(mesh): audit.trace(function, ...)."
            ) from error
        numbers = split_arguments(step, args, kwargs, with_numbers=False)
        if len(numbers.arrays) == len(arguments.arrays):
            raise
        return _make_jaxpr(step, numbers), numbers


def _make_jaxpr(step: Callable, arguments: Arguments) -> Any:
    def call(arrays: Sequence[Any]) -> tuple[()]:
        args, kwargs = arguments.rebuild(arrays)
        step(*args, **kwargs)
        return ()

    return jax.make_jaxpr(call)(arguments.arrays)
