"""Compare two recorded runs: find the first step, site and element that differ.

A run is a list of steps. A step maps the name of each dropout site, in the order of the forward
pass, to a record: {"input": array, "mask": bool array, "output": array}, and, if known, "where",
the line of code. minigpt's tape and `hooks.record` write such steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Record = Mapping[str, Any]
Step = Mapping[str, Record]
PARTS = ("input", "mask", "output")


class Difference(NamedTuple):
    """The first difference between two runs, with both values."""

    step: int
    site: str
    part: str
    """"input", "mask", "output", or "presence" or "shape" where that is what differs"""
    element: tuple[int, ...]
    one: Any
    other: Any
    where: str
    """the line of code of the site, in the second run or, if unknown, in the first"""

    def __str__(self) -> str:
        element = f" at {self.element}" if self.element else ""
        line = f" ({self.where})" if self.where else ""
        return (
            f"step {self.step}, site {self.site}{line}: the {self.part} differs{element}: "
            f"{self.one} and {self.other}"
        )


def first_difference(
    one: Sequence[Step], other: Sequence[Step], *, rtol: float = 1e-3, atol: float = 1e-5
) -> Difference | None:
    """Find the first difference between two runs, site by site: input, then mask, then output.

    Formula: numbers differ if |a - b| > atol + rtol |b|. Masks differ if they are unequal and the
    input is not 0 (where the input is 0, the mask has no effect, and a recorder may not see it).

    Args:
      one: a run.
      other: a run, which decides the order of the sites.
      rtol: relative tolerance of inputs and outputs, above their rounding.
      atol: absolute tolerance of inputs and outputs, in their units.

    Returns:
      A Difference, or None if the steps that both runs have are equal.

    Raises:
      KeyError: a site lacks one of the three parts.

    Source: none; it is a search.

    Example:
      >>> import numpy as np
      >>> from dropout_jax.parity.divergence import first_difference
      >>> x, keep = np.ones(2), np.array([True, False])
      >>> run = [{"embed": {"input": x, "mask": keep, "output": 2 * x * keep}}]
      >>> port = [{"embed": {"input": x, "mask": ~keep, "output": 2 * x * ~keep}}]
      >>> print(first_difference(run, port))
      step 0, site embed: the mask differs at (0,): True and False
    """
    for number, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        for site in [*theirs, *(name for name in mine if name not in theirs)]:
            difference = _compare_site(mine.get(site), theirs.get(site), rtol, atol)
            if difference is not None:
                where = _code_line(theirs.get(site)) or _code_line(mine.get(site))
                return Difference(number, site, *difference, where)
    return None


def save(run: Sequence[Step], path: Path | str) -> None:
    """Write a run to one .npz file, for another process or machine to compare with."""
    arrays: dict[str, Any] = {
        f"{number}|{site}|{part}": _convert_for_npz(value)
        for number, step in enumerate(run)
        for site, parts in step.items()
        for part, value in parts.items()
    }
    np.savez_compressed(path, **arrays)


def load(path: Path | str) -> list[dict[str, dict[str, Any]]]:
    """Read a run that `save` wrote, in the same order."""
    run: list[dict[str, dict[str, Any]]] = []
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            number, site, part = name.split("|")
            while len(run) <= int(number):
                run.append({})
            run[int(number)].setdefault(site, {})[part] = arrays[name]
    return run


def _convert_for_npz(value: Any) -> np.ndarray:
    """Convert bfloat16, which .npz cannot store, to float32, which holds it exactly."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _compare_site(
    mine: Record | None, theirs: Record | None, rtol: float, atol: float
) -> tuple[str, tuple[int, ...], Any, Any] | None:
    """Return part, element and both values of the first difference at a site."""
    if mine is None or theirs is None:
        return "presence", (), mine is not None, theirs is not None
    for part in PARTS:
        a, b = np.asarray(mine[part]), np.asarray(theirs[part])
        if a.shape != b.shape:
            return f"shape of the {part}", (), a.shape, b.shape
        if part == "mask":
            differs = (a != b) & (np.asarray(theirs["input"]) != 0)
        else:
            with np.errstate(invalid="ignore"):
                differs = ~np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
        if differs.any():
            element = tuple(int(i) for i in np.argwhere(differs)[0])
            a, b = (np.broadcast_to(array, differs.shape)[element].item() for array in (a, b))
            return part, element, a, b
    return None


def _code_line(record: Record | None) -> str:
    return str(record["where"]) if record and "where" in record else ""
