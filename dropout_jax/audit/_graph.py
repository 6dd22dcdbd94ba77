"""The random parts of a program: draws, decisions, applications, and what to compute of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dropout_jax.audit._jaxprs import ProgramPath, is_backward
from dropout_jax.audit._values import Factor, Value, union

Reduction = Literal["mask", "application", "number", "key", "seed"]
Use = Literal["zero", "replace", "mix", "bias", "branch", "product"]
"""what a decision does: choose between data and 0, a number, or other data; add a number to it;
choose a branch of the program; enter a matrix product"""
NoiseUse = Literal["multiplied", "added", "other"]
"""what random numbers that no decision uses do to data"""


class Point(NamedTuple):
    """Variables of a program to reduce while it runs."""

    number: int
    path: ProgramPath
    atoms: tuple[Any, ...]
    reduction: Reduction


@dataclasses.dataclass(frozen=True)
class Draw:
    """One equation that draws random bits."""

    trail: tuple[Any, ...]
    generator: str
    shape: tuple[int, ...]
    key: Value
    key_point: Point | None


@dataclasses.dataclass(frozen=True)
class Threshold:
    """What random numbers are compared with, and which side is True."""

    point: Point
    primitive: str
    is_first: bool
    dtype: Any


@dataclasses.dataclass(frozen=True)
class Decision:
    """One equation that makes booleans of random numbers."""

    trail: tuple[Any, ...]
    shape: tuple[int, ...]
    value: Value
    mask_point: Point
    threshold: Threshold | None


@dataclasses.dataclass(frozen=True)
class Application:
    """One equation where a decision meets data."""

    trail: tuple[Any, ...]
    mask: Value
    use: Use
    history: int
    varies_along: frozenset[str]
    is_on_masked: bool
    is_kept_where_true: bool | None
    shape: tuple[int, ...]
    dtype: Any
    point: Point
    factors: tuple[tuple[Point, bool], ...]


@dataclasses.dataclass(frozen=True)
class Opaque:
    """One equation that may draw random numbers where nobody outside can see them."""

    trail: tuple[Any, ...]
    primitive: str
    params: dict[str, Any]
    seed_arguments: int
    seed_point: Point | None
    is_random: bool


@dataclasses.dataclass
class Graph:
    """All of them, by (path, number of the equation)."""

    draws: dict[Any, Draw] = dataclasses.field(default_factory=dict)
    decisions: dict[Any, Decision] = dataclasses.field(default_factory=dict)
    applications: dict[Any, Application] = dataclasses.field(default_factory=dict)
    later_factors: dict[Any, list[tuple[Point, bool, bool]]] = dataclasses.field(
        default_factory=dict
    )
    # Applications whose result is summed to a number, and whether flags mask the terms.
    summed: dict[Any, bool] = dataclasses.field(default_factory=dict)
    noise: dict[Any, NoiseUse] = dataclasses.field(default_factory=dict)
    numbers: dict[Any, int] = dataclasses.field(default_factory=dict)
    opaque: list[Opaque] = dataclasses.field(default_factory=list)
    points: list[Point] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Walk:
    """The position of an equation in the walk through a program."""

    graph: Graph
    path: ProgramPath = ()
    number: int = 0
    trail: tuple[Any, ...] = ()
    is_recording: bool = True
    readers: Mapping[Any, int] = dataclasses.field(default_factory=dict)

    @property
    def id(self) -> Any:
        """The name of the equation."""
        return self.path, self.number

    def enter(self, program: int, *, is_recording: bool = True) -> Walk:
        """Return the walk through a program of the equation."""
        return dataclasses.replace(
            self,
            path=(*self.path, (self.number, program)),
            is_recording=self.is_recording and is_recording,
        )

    def at(self, number: int, equation: Any) -> Walk:
        """Return the walk at an equation of the program."""
        return dataclasses.replace(self, number=number, trail=(*self.trail, equation))

    def point(self, reduction: Reduction, *atoms: Any, path: ProgramPath | None = None) -> Point:
        """Ask for a reduction of variables of the program."""
        points = self.graph.points
        path = self.path if path is None else path
        points.append(Point(len(points), path, atoms, reduction))
        return points[-1]


def record_draw(walk: Walk, generator: str, key: Value, atoms: tuple, shape: Any) -> None:
    """Record a draw of random bits; `atoms` are its key, and its counters."""
    if walk.is_recording:
        point = walk.point("key", *atoms)
        walk.graph.draws[walk.id] = Draw(walk.trail, generator, tuple(shape), key, point)


def record_decision(walk: Walk, value: Value, out: Any, threshold: Any = None) -> None:
    """Record booleans of random numbers; `threshold` is (atom, primitive, is_first, dtype)."""
    if walk.is_recording:
        compared = None
        if threshold is not None:
            compared = Threshold(walk.point("number", threshold[0]), *threshold[1:])
        walk.graph.decisions[walk.id] = Decision(
            walk.trail, tuple(out.aval.shape), value, walk.point("mask", out), compared
        )


def record_application(
    walk: Walk,
    use: Use,
    mask: Value,
    atom: Any,
    out: Any,
    data: Value | None,
    kept: bool | None,
    history: int,
    operands: Sequence[Value],
) -> int:
    """Record that a decision meets data; return the bit of the application in histories."""
    data_operands = [value for value in operands if value.is_array_of_data]
    number = walk.graph.numbers.setdefault(walk.id, len(walk.graph.numbers))
    if walk.is_recording:
        walk.graph.applications[walk.id] = Application(
            walk.trail,
            mask,
            use,
            history,
            union(value.varies_along for value in data_operands),
            any(value.is_masked or value.is_flag for value in data_operands),
            kept,
            tuple(out.aval.shape),
            getattr(out.aval, "dtype", None),
            walk.point("application", atom),
            tuple(_factor_points(walk, data.factors if data else ())),
        )
    return 1 << number


def record_later_factor(walk: Walk, data: Value, atom: Any, factor: Factor) -> None:
    """Record that the result of applications is multiplied once more.

    It is direct if no other equation reads the result, as the derivative of a square does.
    """
    if not walk.is_recording or is_backward(walk.trail):
        return
    for application, is_direct in data.applied:
        factors = walk.graph.later_factors.setdefault(application, [])
        ((point, is_divisor),) = _factor_points(walk, (factor,))
        factors.append((point, is_divisor, is_direct and walk.readers.get(atom, 1) == 1))


def _factor_points(walk: Walk, factors: tuple[Factor, ...]) -> list[tuple[Point, bool]]:
    return [
        (walk.point("number", factor.atom, path=factor.path), factor.is_divisor)
        for factor in factors
    ]
