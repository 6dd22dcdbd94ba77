"""What the analysis knows about a value of a program before the program runs."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

EXACT = 64  # random bits of a number that nothing has rounded
LONGEST_CHAIN = 8  # of factors


class Kind(enum.IntEnum):
    """What a value is, from the least random to the most."""

    DATA = 0  # not random, or randomness already mixed into data
    KEY = 1  # a key, or its words
    NUMBER = 2  # random numbers
    MASK = 3  # a number that a decision chooses, such as 0 or 1 / (1 - rate)
    DECISION = 4  # booleans from a comparison of random numbers


class Factor(NamedTuple):
    """A number that a whole array is multiplied with, or divided by: a variable of a program."""

    path: Any
    atom: Any
    is_divisor: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """What is known of an array.

    Args:
      kind: see Kind.
      arguments: the bits of the step's arguments that it depends on.
      axes: the bits of the axes along which it may vary; 0 is one number for the whole array.
      constant: that number, if it is known.
      draws: the draws of random bits that it comes from.
      decisions: the decisions that it comes from, and whether True is True of the decision.
      seeds: the equations that make its key of a number in the program.
      bits: the random bits in each of its numbers.
      is_independent: whether its elements do not depend on each other.
      factors: what its elements have been multiplied with last.
      applied: the applications of a mask whose result it is, but for such factors, and whether
        without a sum or a matrix product between.
      history: the bits of all applications that it comes from.
      is_flag: whether it is booleans, or numbers 0 and 1, that arguments give: a padding mask.
      is_masked: whether it has been multiplied with flags, with no matrix product since.
      varies_along: the axes of a mesh along which devices have different values.
    """

    kind: Kind = Kind.DATA
    arguments: int = 0
    axes: int = 0
    constant: float | None = None
    draws: frozenset = frozenset()
    decisions: frozenset = frozenset()
    seeds: frozenset = frozenset()
    bits: int = EXACT
    is_independent: bool = True
    factors: tuple[Factor, ...] = ()
    applied: frozenset = frozenset()
    history: int = 0
    is_flag: bool = False
    is_masked: bool = False
    varies_along: frozenset[str] = frozenset()

    @property
    def is_random(self) -> bool:
        """Whether it is random numbers or decisions (a key is not)."""
        return self.kind >= Kind.NUMBER

    @property
    def is_array_of_data(self) -> bool:
        """Whether it is data that is not one number for the whole array."""
        return self.kind == Kind.DATA and self.axes != 0


def merge(values: Iterable[Value], kind: Kind, axes: int) -> Value:
    """Return what is known of a function of values: the sum of what they depend on."""
    values = list(values)
    is_random = kind != Kind.DATA
    return Value(
        kind,
        arguments=_union_bits(value.arguments for value in values),
        axes=axes,
        history=_union_bits(value.history for value in values),
        varies_along=union(value.varies_along for value in values),
        draws=union(value.draws for value in values) if is_random else frozenset(),
        decisions=union(v.decisions for v in values) if kind >= Kind.MASK else frozenset(),
        seeds=union(value.seeds for value in values) if is_random else frozenset(),
        bits=min((value.bits for value in values if value.is_random), default=EXACT),
        is_independent=all(value.is_independent for value in values if value.kind != Kind.DATA),
    )


def join(values: Sequence[Value]) -> Value:
    """Return what is known of a value that is one of several: of branches, or of iterations."""
    first = values[0]
    if all(value == first for value in values):
        return first
    kind = max(value.kind for value in values)
    joined = merge(values, kind, _union_bits(value.axes for value in values))
    applied = union(value.applied for value in values) if kind == Kind.DATA else frozenset()
    return dataclasses.replace(joined, applied=applied)


def with_factor(value: Value, factor: Factor) -> Value:
    """Return data that has been multiplied with a number, or divided by it."""
    factors = (*value.factors, factor)[-LONGEST_CHAIN:]
    return dataclasses.replace(value, factors=factors, constant=None)


def varying_axes(shape: Sequence[int]) -> int:
    """Return the bits of all axes that are longer than 1."""
    return sum(1 << axis for axis, size in enumerate(shape) if size != 1)


def union(sets: Iterable[frozenset]) -> frozenset:
    return frozenset().union(*sets)


def _union_bits(numbers: Iterable[int]) -> int:
    total = 0
    for number in numbers:
        total |= number
    return total
