"""The equations that contain programs: calls, scan, while, cond and shard_map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jax.extend import core

Form = Literal["call", "scan", "while", "cond", "shard_map"]
ProgramPath = tuple[tuple[int, int], ...]
"""where a program is inside the whole: (number of the equation, number of its program), ..."""

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "remat": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "call_jaxpr",
    "custom_vmap_call": "call",
}
TURNS = ("scan", "while", "shard_map")  # that run a program many times
_OWN_THREEFRY = Path(__file__).parents[1] / "random" / "_threefry.py"


class Body(NamedTuple):
    """A program inside an equation, with the values of its constants."""

    jaxpr: Any
    consts: Sequence[Any]


def form_of(equation: core.JaxprEqn) -> Form | None:
    """Return how an equation runs the programs in it, or None if it is taken as a whole."""
    name = equation.primitive.name
    if name in _CALLS:
        return None if is_own_threefry(equation) else "call"
    if name in ("scan", "while", "cond", "shard_map"):
        return name  # pyright: ignore[reportReturnType]
    return None


def bodies_of(equation: core.JaxprEqn) -> tuple[Body, ...]:
    """Return the programs of an equation that has a form; for while: the condition, the body."""
    params = equation.params
    match equation.primitive.name:
        case "cond":
            programs = params["branches"]
        case "while":
            programs = params["cond_jaxpr"], params["body_jaxpr"]
        case "scan" | "shard_map":
            programs = (params["jaxpr"],)
        case name:
            programs = (params[_CALLS[name]],)
    return tuple(as_body(program) for program in programs)


def as_body(program: Any) -> Body:
    """Return a Jaxpr or a ClosedJaxpr with its constants."""
    return Body(getattr(program, "jaxpr", program), getattr(program, "consts", ()))


def manual_axes(equation: core.JaxprEqn) -> dict[str, int]:
    """Return the axes of the mesh along which a shard_map runs its program, and their sizes."""
    manual, shape = equation.params["newly_manual_axes"], equation.params["mesh"].shape
    return {name: size for name, size in shape.items() if name in manual}


def names_in(axes: Any) -> frozenset[str]:
    """Return the names of mesh axes in a PartitionSpec, a tuple or a name."""
    if isinstance(axes, str):
        return frozenset({axes})
    if axes is None or isinstance(axes, int):
        return frozenset()
    return frozenset().union(*(names_in(axis) for axis in axes))


def shape_of(atom: Any) -> tuple[int, ...]:
    """Return the shape of a variable or a literal; tokens have none."""
    return tuple(getattr(atom.aval, "shape", ()))


def is_own_threefry(equation: core.JaxprEqn) -> bool:
    """Whether the equation is the generator of this package's masks."""
    if equation.params.get("name") != "threefry2x32" or len(equation.invars) != 4:
        return False  # differentiation may split it in two
    source = getattr(equation.params["jaxpr"].jaxpr.debug_info, "func_src_info", None)
    return str(_OWN_THREEFRY) in str(source) and len(equation.outvars) > 0


def is_backward(trail: Sequence[Any]) -> bool:
    """Whether an equation belongs to a backward pass, by the names that JAX gives it."""
    names = (str(equation.source_info.name_stack) for equation in trail)
    return any("transpose(" in name or "rematted_computation" in name for name in names)


def module_path(trail: Sequence[Any]) -> str:
    """Return the names that the model's scopes give an equation, such as "block_0/drop"."""
    names = "/".join(str(equation.source_info.name_stack) for equation in trail)
    parts = (part for part in names.split("/") if part and "(" not in part)
    return "/".join(part for part in parts if part not in ("checkpoint", "rematted_computation"))


def count_carry(equation: core.JaxprEqn) -> int:
    """Return the number of the carries of a scan: results that have the shape of the body's.

    (The names of the parameters that tell differ between versions of JAX.)
    """
    ((jaxpr, _),) = bodies_of(equation)
    pairs = zip(equation.outvars, jaxpr.outvars, strict=True)
    return sum(len(shape_of(whole)) == len(shape_of(part)) for whole, part in pairs)


def split_scan(equation: core.JaxprEqn, values: Sequence[Any]) -> tuple[list, list, list]:
    """Split what a scan takes: constants, carry, and xs, which have an axis more than inside."""
    ((jaxpr, _),) = bodies_of(equation)
    pairs = zip(equation.invars, jaxpr.invars, strict=True)
    last = sum(len(shape_of(whole)) == len(shape_of(part)) for whole, part in pairs)
    first = last - count_carry(equation)
    values = list(values)
    return values[:first], values[first:last], values[last:]


def split_while(equation: core.JaxprEqn, values: Sequence[Any]) -> tuple[list, list, list]:
    """Split what a while takes: constants of the condition, constants of the body, carry."""
    first, second = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    values = list(values)
    return values[:first], values[first : first + second], values[first + second :]
