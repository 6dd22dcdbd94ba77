"""Find the equations of a program that the points to be computed need; the rest is not run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from jax.extend import core

from dropout_jax.audit._graph import Point
from dropout_jax.audit._jaxprs import (
    Body,
    ProgramPath,
    bodies_of,
    count_carry,
    form_of,
    split_scan,
    split_while,
)


@dataclasses.dataclass
class Live:
    """What to run of one program, wherever it is called.

    Args:
      equations: numbers of the equations to run.
      outs: which results are wanted.
      inputs: which inputs are needed.
    """

    equations: set[int] = dataclasses.field(default_factory=set)
    outs: list[bool] = dataclasses.field(default_factory=list)
    inputs: list[bool] = dataclasses.field(default_factory=list)


class Plan:
    """What to run of every program, and the points to compute in each.

    Args:
      body: the whole program.
      points: what to compute.
    """

    def __init__(self, body: Body, points: Iterable[Point]) -> None:
        self.points: dict[ProgramPath, list[Point]] = {}
        for point in points:
            self.points.setdefault(point.path, []).append(point)
        self.above = {(path[:n], path[n][0]) for path in self.points for n in range(len(path))}
        self.live: dict[ProgramPath, Live] = {}
        mark(self, (), body, [False] * len(body.jaxpr.outvars))


def mark(plan: Plan, path: ProgramPath, body: Body, wanted: Sequence[bool]) -> list[bool]:
    """Mark what a program needs for its wanted results and its points; return its needed inputs."""
    live = plan.live.setdefault(path, Live())
    jaxpr = body.jaxpr
    live.outs = _either(live.outs or [False] * len(wanted), wanted)
    outs = zip(jaxpr.outvars, live.outs, strict=True)
    needed = {var for var, is_wanted in outs if is_wanted and is_variable(var)}
    needed |= {
        atom for point in plan.points.get(path, ()) for atom in point.atoms if is_variable(atom)
    }
    for number in reversed(range(len(jaxpr.eqns))):
        equation = jaxpr.eqns[number]
        wanted = [var in needed for var in equation.outvars]
        if any(wanted) or (path, number) in plan.above:
            live.equations.add(number)
            inputs = _mark_equation(plan, path, number, equation, wanted)
            atoms = zip(equation.invars, inputs, strict=True)
            needed |= {atom for atom, is_needed in atoms if is_needed and is_variable(atom)}
    live.inputs = [var in needed for var in jaxpr.invars]
    return live.inputs


def is_variable(atom: Any) -> bool:
    """Whether an atom is a variable, and not a literal."""
    return not isinstance(atom, core.Literal)


def _mark_equation(
    plan: Plan, path: ProgramPath, number: int, equation: core.JaxprEqn, wanted: list[bool]
) -> list[bool]:
    """Mark what an equation needs, and return which of its inputs are needed."""
    form = form_of(equation)
    if form is None:
        return [True] * len(equation.invars)
    return _FORMS[form](plan, path, number, equation, wanted)


def _either(first: Sequence[bool], second: Sequence[bool]) -> list[bool]:
    return [a or b for a, b in zip(first, second, strict=True)]


def _mark_call(
    plan: Plan, path: ProgramPath, number: int, equation: core.JaxprEqn, wanted: list[bool]
) -> list[bool]:
    (body,) = bodies_of(equation)
    return mark(plan, (*path, (number, 0)), body, wanted)


def _mark_scan(
    plan: Plan, path: ProgramPath, number: int, equation: core.JaxprEqn, wanted: list[bool]
) -> list[bool]:
    (body,) = bodies_of(equation)
    count = count_carry(equation)
    while True:
        inputs = mark(plan, (*path, (number, 0)), body, wanted)
        consts, carry, xs = split_scan(equation, inputs)
        grown = [*_either(wanted[:count], carry), *wanted[count:]]
        if grown == wanted:
            return [*consts, *wanted[:count], *xs]
        wanted = grown


def _mark_while(
    plan: Plan, path: ProgramPath, number: int, equation: core.JaxprEqn, wanted: list[bool]
) -> list[bool]:
    condition, body = bodies_of(equation)
    tests = mark(plan, (*path, (number, 0)), condition, [True])
    of_condition, _, carry = split_while(
        equation,
        [
            *tests[: equation.params["cond_nconsts"]],
            *[False] * equation.params["body_nconsts"],
            *tests[equation.params["cond_nconsts"] :],
        ],
    )
    wanted = _either(wanted, carry)
    while True:
        inputs = mark(plan, (*path, (number, 1)), body, wanted)
        of_body = inputs[: equation.params["body_nconsts"]]
        grown = _either(wanted, inputs[len(of_body) :])
        if grown == wanted:
            return [*of_condition, *of_body, *wanted]
        wanted = grown


def _mark_cond(
    plan: Plan, path: ProgramPath, number: int, equation: core.JaxprEqn, wanted: list[bool]
) -> list[bool]:
    inputs = [False] * (len(equation.invars) - 1)
    for program, body in enumerate(bodies_of(equation)):
        inputs = _either(inputs, mark(plan, (*path, (number, program)), body, wanted))
    return [True, *inputs]


_FORMS = {
    "call": _mark_call,
    "shard_map": _mark_call,
    "scan": _mark_scan,
    "while": _mark_while,
    "cond": _mark_cond,
}
