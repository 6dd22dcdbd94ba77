"""Run what a program needs for the points, and compute them: an interpreter of jaxprs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.sharding import PartitionSpec

from dropout_jax.audit._jaxprs import (
    Body,
    ProgramPath,
    bodies_of,
    form_of,
    manual_axes,
    split_scan,
    split_while,
)
from dropout_jax.audit._liveness import Plan
from dropout_jax.audit._reductions import reduce_point

MOST_TURNS = 64  # of a while loop that are recorded

Harvest = dict[int, dict[str, jax.Array]]
"""by the point's number: its reductions; loops stack them"""


class Run:
    """The run of a plan.

    Args:
      plan: what to run.
      keeps_masks: whether a mask is returned whole.
    """

    def __init__(self, plan: Plan, *, keeps_masks: bool = False) -> None:
        self.plan = plan
        self.keeps_masks = keeps_masks

    def evaluate(
        self, body: Body, inputs: Sequence[Any], path: ProgramPath = ()
    ) -> tuple[list[Any], Harvest]:
        """Return the wanted results of a program (None for the others), and its points."""
        live = self.plan.live[path]
        known = dict(zip(body.jaxpr.constvars, body.consts, strict=True))
        known.update(zip(body.jaxpr.invars, inputs, strict=True))
        harvest: Harvest = {}
        for number in sorted(live.equations):
            equation = body.jaxpr.eqns[number]
            values = [_read(known, atom) for atom in equation.invars]
            with _context_of(equation):
                results, inner = self._run_equation(equation, values, path, number)
            known.update(zip(equation.outvars, results, strict=True))
            harvest |= inner
        for point in self.plan.points.get(path, ()):
            values = [_read(known, atom) for atom in point.atoms]
            harvest[point.number] = reduce_point(point, values, keeps_masks=self.keeps_masks)
        wanted = zip(body.jaxpr.outvars, live.outs, strict=True)
        return [_read(known, atom) if is_wanted else None for atom, is_wanted in wanted], harvest

    def _run_equation(
        self, equation: core.JaxprEqn, values: list[Any], path: ProgramPath, number: int
    ) -> tuple[Sequence[Any], Harvest]:
        form = form_of(equation)
        if form is None:
            return _bind(equation, values), {}
        return getattr(self, f"_run_{form}")(equation, values, (*path, (number, 0)))

    def _run_call(
        self, equation: core.JaxprEqn, values: list[Any], path: ProgramPath
    ) -> tuple[list[Any], Harvest]:
        (body,) = bodies_of(equation)
        if equation.params.get("differentiated") and equation.params.get("prevent_cse"):
            values = lax.optimization_barrier(values)  # a recomputation stays one
        return self.evaluate(body, values, path)

    def _run_scan(
        self, equation: core.JaxprEqn, values: list[Any], path: ProgramPath
    ) -> tuple[list[Any], Harvest]:
        (body,) = bodies_of(equation)
        consts, carry, xs = split_scan(equation, values)
        wanted = self.plan.live[path].outs

        def step(carry: list[Any], x: list[Any]) -> Any:
            outs, harvest = self.evaluate(body, [*consts, *carry, *x], path)
            return outs[: len(carry)], (outs[len(carry) :], harvest)

        carry = [
            value if is_wanted else None
            for value, is_wanted in zip(carry, wanted[: len(carry)], strict=True)
        ]
        live = self.plan.live[path].inputs[len(consts) + len(carry) :]
        xs = [x if is_needed else None for x, is_needed in zip(xs, live, strict=True)]
        params = equation.params
        carry, (ys, harvest) = lax.scan(
            step, carry, xs, length=params["length"], reverse=params["reverse"]
        )
        return [*carry, *ys], harvest

    def _run_while(
        self, equation: core.JaxprEqn, values: list[Any], path: ProgramPath
    ) -> tuple[list[Any], Harvest]:
        condition, body = bodies_of(equation)
        of_condition, of_body, carry = split_while(equation, values)
        inside = (*path[:-1], (path[-1][0], 1))
        wanted = self.plan.live[inside].outs
        carry = [
            value if is_wanted else None for value, is_wanted in zip(carry, wanted, strict=True)
        ]

        def turn(carry: list[Any]) -> Any:
            return self.evaluate(body, [*of_body, *carry], inside)

        def goes_on(state: Any) -> Any:
            (going,), _ = self.evaluate(condition, [*of_condition, *state[1]], path)
            return going

        def step(state: Any) -> Any:
            number, carry, kept = state
            carry, harvest = turn(carry)
            slot = jnp.minimum(number, MOST_TURNS - 1)
            kept = jax.tree.map(lambda all_, one: all_.at[slot].set(one), kept, harvest)
            return number + 1, carry, kept

        empty = jax.tree.map(
            lambda leaf: jnp.zeros((MOST_TURNS, *leaf.shape), leaf.dtype),
            jax.eval_shape(turn, carry)[1],
        )
        _, carry, harvest = lax.while_loop(goes_on, step, (jnp.zeros((), jnp.int32), carry, empty))
        return carry, harvest

    def _run_cond(
        self, equation: core.JaxprEqn, values: list[Any], path: ProgramPath
    ) -> tuple[list[Any], Harvest]:
        chooser, *operands = values
        bodies = bodies_of(equation)
        paths = [(*path[:-1], (path[-1][0], program)) for program in range(len(bodies))]
        empty: Harvest = {}
        for body, inside in zip(bodies, paths, strict=True):
            shapes = jax.eval_shape(
                lambda ops, b=body, p=inside: self.evaluate(b, ops, p)[1], operands
            )
            empty |= jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def branch(body: Body, inside: ProgramPath) -> Any:
            def run(operands: list[Any]) -> Any:
                outs, harvest = self.evaluate(body, operands, inside)
                return outs, empty | harvest

            return run

        branches = [branch(body, inside) for body, inside in zip(bodies, paths, strict=True)]
        return lax.switch(chooser, branches, operands)

    def _run_shard_map(
        self, equation: core.JaxprEqn, values: list[Any], path: ProgramPath
    ) -> tuple[list[Any], Harvest]:
        (body,) = bodies_of(equation)
        params, live = equation.params, self.plan.live[path]
        manual = tuple(manual_axes(equation))

        def run(values: list[Any]) -> Any:
            outs, harvest = self.evaluate(body, values, path)
            return outs, jax.tree.map(lambda leaf: leaf[None], harvest)

        call = jax.shard_map(
            run,
            mesh=params["mesh"],
            in_specs=(_keep(params["in_specs"], live.inputs),),
            out_specs=(_keep(params["out_specs"], live.outs), PartitionSpec(manual)),
            axis_names=set(manual),
            check_vma=False,
        )
        return call(_keep(values, live.inputs))


def _keep(values: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    return [value if is_wanted else None for value, is_wanted in zip(values, wanted, strict=True)]


def _read(known: dict[Any, Any], atom: Any) -> Any:
    if isinstance(atom, core.Literal):
        dtype = getattr(atom.aval, "dtype", None)
        return atom.val if dtype is None else jnp.asarray(atom.val, dtype)
    return known.get(atom)


def _context_of(equation: core.JaxprEqn) -> contextlib.AbstractContextManager:
    """Return the settings with which an equation was traced, such as its mesh."""
    context = getattr(equation, "ctx", None)
    return getattr(context, "manager", None) or contextlib.nullcontext()


def _bind(equation: core.JaxprEqn, values: list[Any]) -> Sequence[Any]:
    """Run an equation as it is."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    results = equation.primitive.bind(*functions, *values, **params)
    return results if equation.primitive.multiple_results else [results]
