"""Find the line of the user's code, and the module of the model, that a PyTorch operation is of."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

from dropout_jax.audit._locations import UNKNOWN, Location, find_library

UNREGISTERED = "not registered"  # in the path of a module that is not part of the model
_WRAPPERS = ("module", "overrides", "_contextlib", "_python_dispatch", "eval_frame")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an operation comes from.

    Args:
      callers: the lines of the user's code that lead to it, the innermost first.
      library: the functions of libraries between that line and the operation, inside first.
      module: the path of the innermost module of the model that is being called.
      is_compiled: whether torch.compile would have taken the place of the code.
    """

    callers: tuple[Location, ...]
    library: tuple[str, ...]
    module: str
    is_compiled: bool

    @property
    def location(self) -> Location:
        """The innermost line of the user's code."""
        return self.callers[0] if self.callers else UNKNOWN


def name_modules(model: nn.Module) -> dict[int, str]:
    """Return the path of every module, by its id; without the wrapper of torch.compile."""
    return {id(module): clean_path(path) for path, module in model.named_modules()}


def find_aliases(model: nn.Module) -> dict[str, str]:
    """Return, by the path of each module that has several, all of them as a text."""
    paths: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        paths[id(module)].append(clean_path(path))
    several = {id_: dict.fromkeys(names) for id_, names in paths.items()}
    return {
        next(iter(names)): " = ".join(map(repr, names))
        for names in several.values()
        if len(names) > 1
    }


def clean_path(path: str) -> str:
    """Return the path of a module without the parts that torch.compile adds."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


def find_origin(names: dict[int, str], stop: CodeType, frame: FrameType | None = None) -> Origin:
    """Walk the stack outwards to the function `stop`, which runs the model.

    Where no line of the user's code is in between, as in an nn.Sequential, it is the line of the
    user's code that called the auditor.
    """
    callers: list[Location] = []
    library: list[str] = []
    module, is_compiled, is_inside = None, False, True
    for each in _walk(frame or sys._getframe(1)):
        code = each.f_code
        is_inside = is_inside and code is not stop
        owner = find_library(code.co_filename)
        is_compiled |= is_inside and owner == "torch" and code.co_name == "compile_wrapper"
        if is_inside and module is None:
            module = _name_module(each, names)
        if not owner and (is_inside or not callers):
            callers.append(Location(code.co_filename, each.f_lineno, code.co_qualname))
        elif owner == "torch" and not callers:
            stem = code.co_filename.rpartition("/")[2].removesuffix(".py")
            library += [] if stem in _WRAPPERS else [f"torch:{stem}.{code.co_name}"]
        if not is_inside and callers:
            break
    return Origin(tuple(callers), tuple(library), module or "", is_compiled)


def _walk(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _name_module(frame: FrameType, names: dict[int, str]) -> str | None:
    """Return the path of the module whose method a frame runs; None for another function."""
    code = frame.f_code
    owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    if not isinstance(owner, nn.Module) or id(owner) not in names:
        return None
    return names[id(owner)]


def find_unregistered(names: dict[int, str], stop: CodeType) -> str:
    """Return the class of a module that is being called and is not part of the model, or ""."""
    for frame in _walk(sys._getframe(1)):
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if code is stop or id(owner) in names:
            return ""
        if isinstance(owner, nn.Module):
            return type(owner).__name__
    return ""


def locate_assignment(model: nn.Module, path: str, fallback: Location) -> Location:
    """Return the line of the user's code that assigns a module or an attribute of one.

    It is the line `self.name = ...` of the nearest class of the user's that the path goes through.
    """
    parts = path.split(".")
    for depth in reversed(range(len(parts))):
        owner: Any = model
        for part in parts[:depth]:
            owner = getattr(owner, part)
        for kind in type(owner).__mro__:
            location = _find_line(kind, rf"\b\w+\.{re.escape(parts[depth])}\b[^=()]*=[^=]")
            if location is not None:
                return location
    return fallback


def _find_line(kind: type, pattern: str) -> Location | None:
    """Return the first line of a class of the user's that has a pattern."""
    try:
        file, (lines, first) = inspect.getsourcefile(kind), inspect.getsourcelines(kind)
    except (OSError, TypeError):
        return None
    if file is None or find_library(file):
        return None
    numbers = (n for n, line in enumerate(lines) if re.search(pattern, line))
    number = next(numbers, None)
    return None if number is None else Location(file, first + number, kind.__qualname__)


def locate_forward(model: nn.Module, fallback: Location) -> Location:
    """Return where the user's code defines the forward pass."""
    if isinstance(model, torch.jit.ScriptModule):
        return fallback
    inner = getattr(model, "_orig_mod", model)
    code = getattr(type(inner).forward, "__code__", None)
    if code is None or find_library(code.co_filename):
        return fallback
    return Location(code.co_filename, code.co_firstlineno, code.co_qualname)
