"""A call of an operation of PyTorch: its name, its arguments, and the tensors among them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

_NOT_RANDOM = ("_fused_sdp_choice", "_cudnn_init_dropout_state")


@dataclasses.dataclass(frozen=True)
class Operation:
    """The parts of the name of an operation.

    Args:
      name: such as "mul"; without the underscore of the form that works in place.
      overload: such as "Tensor".
      is_in_place: whether it writes to one of its arguments.
      is_random: whether it draws random numbers.
    """

    name: str
    overload: str
    is_in_place: bool
    is_random: bool


@functools.cache
def describe(func: Any) -> Operation:
    """Return the parts of the name of an operation, "aten.mul_.Tensor"."""
    _, name, overload = str(func).rsplit(".", 2)
    is_in_place = name.endswith("_") and not name.endswith("__")
    is_random = torch.Tag.nondeterministic_seeded in func.tags and name not in _NOT_RANDOM
    name = name[:-1] if is_in_place else name
    return Operation(name, overload, is_in_place or "out" in overload, is_random)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation."""

    func: Any
    operation: Operation
    args: tuple
    kwargs: dict[str, Any]

    def argument(self, number: int, default: Any = None) -> Any:
        """Return a positional argument; the default if it was left out."""
        return self.args[number] if number < len(self.args) else default

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors among its arguments, and among lists of them."""
        return list_tensors([*self.args, *self.kwargs.values()])

    def with_tensor(self, old: torch.Tensor, new: torch.Tensor) -> Any:
        """Return what the operation makes of other numbers in the place of a tensor."""
        args = [new if arg is old else arg for arg in self.args]
        kwargs = {name: new if arg is old else arg for name, arg in self.kwargs.items()}
        return self.func(*args, **kwargs)


def list_tensors(value: Any) -> list[torch.Tensor]:
    """Return the tensors of a result, a list or a list of lists, in their order."""
    tensors, rest = [], [value]
    while rest:
        value = rest.pop()
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            rest += reversed(value)
    return tensors


def is_number(argument: Any) -> bool:
    """Whether an argument is one number, of Python or as a tensor."""
    if isinstance(argument, torch.Tensor):
        return argument.numel() == 1
    return isinstance(argument, int | float)


def constant_of(argument: Any) -> float | None:
    """Return the one number that an argument is, or that fills it; None if there is none."""
    if not isinstance(argument, torch.Tensor):
        return float(argument) if isinstance(argument, int | float) else None
    argument = argument.detach()
    if not argument.numel() or argument.is_complex():
        return None
    low, high = float(argument.min()), float(argument.max())
    return low if low == high else None
