"""Find the line of the user's code that a random decision comes from."""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Packages whose lines are not the user's. The line that called them is.
LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "equinox",
    "haiku",
    "keras",
    "optax",
    "torch",
    "chex",
    "jaxtyping",
    "beartype",
)


class Location(NamedTuple):
    """A line of the user's code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.function})"


class Frame(NamedTuple):
    """A line of any code, with the library that it belongs to; "" is the user's own code."""

    location: Location
    library: str


UNKNOWN = Location("<unknown>", 0, "<unknown>")


def find_location(trail: Sequence[Any]) -> Location:
    """Return the innermost line of the user's code among the equations that lead to one.

    `trail` has the equations from the outermost to the innermost. A compiled function of a library
    is traced once for all its callers, so its frames end where it was called; the equation of the
    call has the caller's.
    """
    return next((frame.location for frame in walk_frames(trail) if not frame.library), UNKNOWN)


def find_callers(trail: Sequence[Any]) -> tuple[Location, ...]:
    """Return the lines of the user's code that lead to an equation, the innermost first."""
    return tuple(frame.location for frame in walk_frames(trail) if not frame.library)


def find_gradient_call(trail: Sequence[Any]) -> Location | None:
    """Return the innermost line of the user's code that differentiates, or None."""
    is_derivative = False
    for frame in walk_frames(trail):
        if frame.library == "jax":
            is_derivative |= _last_name(frame.location.function) in ("vjp", "jvp", "linearize")
        elif is_derivative and not frame.library:
            return frame.location
    return None


def locate_function(function: Any) -> Location:
    """Return where a function is defined, as far as it can be known."""
    code = getattr(_unwrap(function), "__code__", None)
    if code is None:
        return Location("<unknown>", 0, getattr(function, "__name__", type(function).__name__))
    return Location(code.co_filename, code.co_firstlineno, code.co_qualname)


def _unwrap(function: Any) -> Any:
    """Return the function inside jit, functools.partial, a method or an object with __call__."""
    for inner in ("__wrapped__", "__func__", "func"):
        if hasattr(function, inner):
            return _unwrap(getattr(function, inner))
    if hasattr(function, "__code__") or isinstance(function, type):
        return function
    return vars(type(function)).get("__call__", function)


def find_library_calls(trail: Sequence[Any]) -> tuple[str, ...]:
    """Return the functions of libraries between the user's line and the equation, inside first."""
    names = []
    for frame in walk_frames(trail):
        if not frame.library:
            break
        names.append(f"{frame.library}:{Path(frame.location.file).stem}.{frame.location.function}")
    return tuple(names)


def is_inside_sampler(trail: Sequence[Any]) -> bool:
    """Whether an equation belongs to a sampler of jax.random, such as one that rejects."""
    for frame in walk_frames(trail):
        if not frame.library:
            return False
        if frame.library == "jax" and "random" in Path(frame.location.file).with_suffix("").parts:
            return True
    return False


def walk_frames(trail: Sequence[Any]) -> Iterator[Frame]:
    """Iterate over the frames of an equation from the inside, then over those of its callers."""
    for number in reversed(range(len(trail))):
        traceback = getattr(trail[number].source_info, "traceback", None)
        frames = list(traceback.frames) if traceback is not None else []
        if number and not _are_frames_of_call(frames, trail[number - 1]):
            continue
        for frame in frames:
            location = Location(frame.file_name, frame.line_num, frame.function_name)
            yield Frame(location, find_library(frame.file_name))


def _are_frames_of_call(frames: list[Any], call: Any) -> bool:
    """Whether the frames of an equation are from inside the function that a jit calls.

    A function of a library may have been traced for another caller, in a backward pass, which gives
    all its equations the frames of that caller.
    """
    name = call.params.get("name")
    if call.primitive.name not in ("jit", "pjit") or name is None:
        return True
    source = str(getattr(call.params["jaxpr"].jaxpr.debug_info, "func_src_info", None))
    is_inside = any(_last_name(frame.function_name) == name for frame in frames)
    library = find_library(source.partition(" at ")[2])
    return is_inside or library in ("", "equinox")  # whose filter_jit gives its own file


def _last_name(function: str) -> str:
    return function.rpartition(".")[2]


@functools.cache
def find_library(file: str) -> str:
    """Return the name of the library that a file belongs to; "" if it is the user's code."""
    if file.startswith("<frozen"):
        return "python"
    for name, folder in _library_folders(len(sys.modules)):
        if file.startswith(folder) and (name != "python" or "site-packages" not in file):
            return name
    return ""


@functools.lru_cache(maxsize=1)
def _library_folders(_: int) -> tuple[tuple[str, str], ...]:
    modules = {name: getattr(sys.modules.get(name), "__file__", None) for name in LIBRARIES}
    folders = {name: str(Path(file).parent) + "/" for name, file in modules.items() if file}
    folders["dropout_jax"] = str(Path(__file__).parents[1]) + "/"
    folders["python"] = sysconfig.get_paths()["stdlib"] + "/"
    return tuple(folders.items())
