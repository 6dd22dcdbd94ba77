"""Compare two recorded runs: find the first step, site and element that differ.

A run is a list of steps. A step maps the name of each dropout site, in the order of the forward
pass, to a record: {"input": array, "mask": bool array, "output": array}, and, if known, "where",
the line of code. minigpt's tape and `hooks.record` write such steps. A name is any string.

A file of `save` is an .npz archive of the arrays "0", "1" and so on, and of "index", JSON as bytes:
a list of steps, each a list of [site, record], a record a list of [part, value]. A value is
{"text": string} or {"array": number}. NumPy's format has no dtypes of ml_dtypes, such as bfloat16:
their bytes are stored as unsigned integers, and their entries have "dtype", its name.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dropout_jax import _validation

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

    Formula: numbers differ if abs(a - b) > atol + rtol * abs(b). Masks differ if they are unequal
    and the input is not 0 (where the input is 0, the mask has no effect, and a recorder may not see
    it).

    Args:
      one: a run.
      other: a run, which decides the order of the sites: pass that of `hooks.record` here, as the
        names of what `jax.jit` and `jax.grad` return are sorted.
      rtol: relative tolerance of inputs and outputs, above their rounding.
      atol: absolute tolerance of inputs and outputs, in their units.

    Returns:
      A Difference, or None if the steps that both runs have are equal; a run may be shorter.

    Raises:
      TypeError, ValueError: an argument, with what is allowed; a run without steps.
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
    rtol, atol = _check_tolerance(rtol, "rtol"), _check_tolerance(atol, "atol")
    runs = _check_run(one, "one"), _check_run(other, "other")
    for name, run in zip(("one", "other"), runs, strict=True):
        if not run:
            _validation.fail(ValueError, name, run, "at least one step", "Record a step first.")
    for number, (mine, theirs) in enumerate(zip(*runs, strict=False)):
        for site in [*theirs, *(name for name in mine if name not in theirs)]:
            difference = _compare_site(mine.get(site), theirs.get(site), rtol, atol)
            if difference is not None:
                where = _code_line(theirs.get(site)) or _code_line(mine.get(site))
                return Difference(number, site, *difference, where)
    return None


def save(run: Sequence[Step], path: Path | str) -> None:
    """Write a run to one file, for another process or machine to compare with.

    Args:
      run: a run. Its records may hold arrays of any dtype but object, scalars and strings.
      path: of the file, which is written as it is named.

    Raises:
      TypeError: the run, a step, a record, a name or a value, with what is allowed.

    Example:
      >>> import tempfile, numpy as np
      >>> from dropout_jax.parity import divergence
      >>> run = [{"embed": {"input": np.ones(2), "where": "model.py:3"}}]
      >>> with tempfile.NamedTemporaryFile() as file:
      ...     divergence.save(run, file.name)
      ...     divergence.load(file.name)
      [{'embed': {'input': array([1., 1.]), 'where': 'model.py:3'}}]
    """
    arrays: dict[str, Any] = {}
    index = [
        [
            [site, [[part, _store(value, site, part, arrays)] for part, value in record.items()]]
            for site, record in step.items()
        ]
        for step in _check_run(run, "run")
    ]
    arrays["index"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    with Path(path).open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path | str) -> list[dict[str, dict[str, Any]]]:
    """Read a run that `save` wrote: equal to it, in the same order, with NumPy's arrays.

    Raises:
      ValueError: the file is not one that `save` wrote.
    """
    try:
        with Path(path).open("rb") as file, np.load(file) as arrays:  # no pickles by default
            index = json.loads(bytes(arrays["index"]).decode())
            return [
                {
                    site: {part: _restore(value, arrays) for part, value in record}
                    for site, record in step
                }
                for step in index
            ]
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        allowed = "a file of dropout_jax.parity.divergence.save"
        remedy = "Write it again with save(run, path)."
        raise ValueError(
            f"path={str(path)!r} is not allowed: path must be {allowed}. {remedy}"
        ) from error


def _store(value: Any, site: str, part: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the entry of a value in the index, and add its array."""
    if not isinstance(part, str):
        _validation.fail(TypeError, f"part at {site!r}", part, "a string", "Write str(part).")
    if isinstance(value, str):
        return {"text": str(value)}
    array = _convert_to_array(value)
    number, dtype = str(len(arrays)), array.dtype
    is_known = dtype.isbuiltin != 2 or dtype.name in np.sctypeDict  # 2: of another package
    if dtype.hasobject or not is_known or isinstance(value, bytes | np.ma.MaskedArray):
        allowed = "a string, a number or an array of numbers"
        remedy = "Convert it to an array of numbers, or to a string: str(value)."
        _validation.fail(TypeError, f"{part!r} at site {site!r}", value, allowed, remedy)
    if dtype.isbuiltin != 2:
        arrays[number] = array
        return {"array": number}
    arrays[number] = array.view(f"uint{8 * dtype.itemsize}")
    return {"array": number, "dtype": dtype.name}


def _convert_to_array(value: Any) -> np.ndarray:
    """Return an array, of objects where NumPy cannot convert the value."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return np.asarray(None)


def _restore(entry: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> Any:
    if "text" in entry:
        return entry["text"]
    array = arrays[entry["array"]]
    return array.view(np.dtype(entry["dtype"])) if "dtype" in entry else array


def _check_run(run: Any, name: str) -> Sequence[Step]:
    """Return a run whose steps and records are mappings with names of text."""
    remedy = "For one step pass [step]."
    if not isinstance(run, list | tuple):
        _validation.fail(TypeError, name, run, "a list of steps", remedy)
    for number, step in enumerate(run):
        if not isinstance(step, Mapping):
            allowed = "a mapping from sites to records"
            _validation.fail(TypeError, f"{name}[{number}]", step, allowed, remedy)
        for site, record in step.items():
            if not isinstance(site, str):
                remedy = "Write str(site)."
                _validation.fail(TypeError, f"site of {name}[{number}]", site, "a string", remedy)
            if not isinstance(record, Mapping):
                allowed, remedy = "a mapping from parts to arrays", "Pass {'input': x, ...}."
                _validation.fail(TypeError, f"{name}[{number}][{site!r}]", record, allowed, remedy)
    return run


def _check_tolerance(value: Any, name: str) -> float:
    is_number = isinstance(value, int | float | np.integer | np.floating)
    allowed, remedy = "a number of at least 0", "Pass 0.0 for equality."
    if isinstance(value, bool) or not is_number:
        _validation.fail(TypeError, name, value, allowed, remedy)
    if not 0 <= value < math.inf:
        _validation.fail(ValueError, name, value, allowed + ", finite", remedy)
    return float(value)


def _compare_site(
    mine: Record | None, theirs: Record | None, rtol: float, atol: float
) -> tuple[str, tuple[int, ...], Any, Any] | None:
    """Return part, element and both values of the first difference at a site."""
    if mine is None or theirs is None:
        return "presence", (), mine is not None, theirs is not None
    for part in PARTS:
        a, b = _get_part(mine, part), _get_part(theirs, part)
        if a.shape != b.shape:
            return f"shape of the {part}", (), a.shape, b.shape
        differs = _differ(a, b, rtol, atol)
        if part == "mask":
            differs = differs & (_get_part(theirs, "input") != 0)
        if differs.any():
            element = tuple(int(i) for i in np.argwhere(differs)[0])
            a, b = (np.broadcast_to(array, differs.shape)[element].item() for array in (a, b))
            return part, element, a, b
    return None


def _differ(a: np.ndarray, b: np.ndarray, rtol: float, atol: float) -> np.ndarray:
    """Compare by the formula, in a dtype that holds both; bools by equality."""
    if a.dtype == b.dtype == bool:
        return a != b
    with np.errstate(invalid="ignore"):
        return ~np.isclose(_widen(a), _widen(b), rtol=rtol, atol=atol, equal_nan=True)


def _widen(array: np.ndarray) -> np.ndarray:
    if "complex" in array.dtype.name:
        return array.astype(np.complex128)
    return array.astype(np.longdouble if array.dtype.kind in "iu" else np.float64)


def _get_part(record: Record, part: str) -> np.ndarray:
    if part not in record:
        raise KeyError(f"a record with {list(record)} lacks {part!r}: it must have {list(PARTS)}.")
    return np.asarray(record[part])


def _code_line(record: Record | None) -> str:
    return str(record["where"]) if record and "where" in record else ""
