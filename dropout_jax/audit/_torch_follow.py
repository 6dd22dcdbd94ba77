"""What operations of PyTorch make of random numbers, decisions and masks, as rules by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

from dropout_jax.audit._graph import Use
from dropout_jax.audit._torch_calls import Call, constant_of, is_number
from dropout_jax.audit._torch_values import Draw, Value, map_grid, share_of_true

_BIAS = -1e3  # what is added to the scores of attention, at most, so that they do not count
_COPIES = ("clone", "_to_copy", "copy", "lift_fresh")
_SELECTIONS = ("index", "nonzero", "masked_select")
_PARTS = ("index_select", "gather", "repeat", "cat", "stack", "flip", "roll")


Known = Value | None | Any  # NotImplemented too: the shape of the result tells


@runtime_checkable
class Watcher(Protocol):
    """What the rules need of the watch."""

    is_backward: bool

    def value_of(self, tensor: Any) -> Value | None:
        """Return what is known of a tensor."""

    def remember(self, tensors: list[torch.Tensor], value: Value | None) -> None:
        """Set what is known of tensors."""

    def draw(self, generator: str, shape: tuple[int, ...], key: tuple | None) -> Draw:
        """Record a draw."""
        ...

    def decide(
        self,
        draws: tuple[Draw, ...],
        probability: float | None,
        resolution: int = 53,
        *,
        is_independent: bool = True,
    ) -> Value:
        """Record a decision."""
        ...

    def apply(
        self, mask: torch.Tensor, use: Use, data: torch.Tensor | None, *, flips: bool = False
    ) -> Value | None:
        """Record that a mask meets data."""

    def branch(self, value: Value) -> None:
        """Record that random numbers choose a branch of the program."""


def follow(watch: Watcher, call: Call) -> Known:
    """Return what is known of the result, before the operation runs; None is: nothing.

    NotImplemented is: `follow_any` tells, after it.
    """
    rule = _RULES.get(call.operation.name)
    return rule(watch, call) if rule else NotImplemented


def follow_any(watch: Watcher, call: Call, result: torch.Tensor) -> Value | None:
    """Return what is known of the result of an operation without a rule."""
    tensors = call.tensors()
    values = [watch.value_of(tensor) for tensor in tensors]
    random = [value for value in values if value is not None and value.kind != "data"]
    if not random:
        return None
    if call.operation.name in (*_PARTS, "index") and watch.value_of(tensors[0]) is random[0]:
        return random[0]
    data = [tensor for tensor in tensors if _kind_of(watch, tensor) == "data"]
    if data or call.operation.name in _SELECTIONS:
        _apply_any(watch, call, tensors, data)
        return None
    if any(value.kind == "number" for value in random):
        return _follow_number(call, tensors, values, result)
    is_local = torch.Tag.pointwise in call.func.tags or call.operation.name in _PARTS
    if result.numel() < max(tensor.numel() for tensor in tensors) and not is_local:
        return None
    return random[0] if is_local else dataclasses.replace(random[0], is_independent=False)


def _apply_any(
    watch: Watcher, call: Call, tensors: list[torch.Tensor], data: list[torch.Tensor]
) -> None:
    """A mask that meets data in another way, element by element, or selects a part of it."""
    masks = [tensor for tensor in tensors if _kind_of(watch, tensor) == "mask"]
    if masks and call.operation.name in _SELECTIONS:
        watch.apply(masks[0], "branch", None)
    elif masks and torch.Tag.pointwise in call.func.tags:
        watch.apply(masks[0], "mix", data[0])


def _follow_number(
    call: Call, tensors: list[torch.Tensor], values: list[Value | None], result: torch.Tensor
) -> Value:
    """Numbers made of random numbers, element by element or not."""
    numbers = [value for value in values if value is not None and value.kind == "number"]
    draws = tuple(dict.fromkeys(draw for value in numbers for draw in value.draws))
    first = tensors[values.index(numbers[0])]
    is_local = len(numbers) == 1 and result.shape == first.shape
    grid = None
    if is_local and all(tensor is first or tensor.numel() == 1 for tensor in tensors):
        grid = _on_grid(call, first, numbers[0])
    bits = min(value.bits for value in numbers)
    return Value("number", draws, grid=grid, bits=bits, is_independent=is_local)


def _on_grid(call: Call, tensor: torch.Tensor, value: Value) -> torch.Tensor | None:
    return map_grid(value, lambda grid: call.with_tensor(tensor, grid))


def _compare(watch: Watcher, call: Call) -> Value | None:
    """Random numbers against a threshold are a decision.

    Against data along more axes they are not, as in the place of a span that starts at random.
    """
    values = [watch.value_of(arg) for arg in call.args[:2]]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in call.tensors()))
    for arg, value in zip(call.args[:2], values, strict=True):
        if value is not None and value.kind == "number":
            return _decide(watch, call, arg, value) if arg.numel() == shape.numel() else None
    masks = [value for value in values if value is not None and value.kind == "mask"]
    return masks[0] if masks else None


def _decide(watch: Watcher, call: Call, tensor: torch.Tensor, value: Value) -> Value:
    others = [other for other in call.tensors() if other is not tensor]
    is_even = all(constant_of(other) is not None for other in others)
    first = {id(other): other.flatten()[0] for other in others if other.numel()}
    args = tuple(first.get(id(arg), arg) for arg in call.args)
    even_call = dataclasses.replace(call, args=args)
    return watch.decide(
        value.draws,
        share_of_true(_on_grid(even_call, tensor, value)) if is_even else None,
        value.bits,
        is_independent=value.is_independent and is_even,
    )


def _round(watch: Watcher, call: Call) -> Known:
    """floor(uniform + 1 - rate) is a decision in the form of numbers."""
    value = watch.value_of(call.args[0])
    if value is None or value.kind != "number":
        return NotImplemented
    return _decide(watch, call, call.args[0], value)


def _copy(watch: Watcher, call: Call) -> Value | None:
    """A copy is what its source is; random numbers as booleans or integers are a decision."""
    source = call.args[1] if call.operation.name == "copy" else call.args[0]
    value = watch.value_of(source)
    if value is None or value.kind != "number":
        return value
    dtype = call.kwargs.get("dtype")
    if call.operation.name != "_to_copy" or dtype is None:
        return value
    if not dtype.is_floating_point and not dtype.is_complex:
        return _decide(watch, call, source, value)
    bits = min(value.bits, 1 - round(math.log2(torch.finfo(dtype).eps)))
    return dataclasses.replace(value, grid=_on_grid(call, source, value), bits=bits)


def _multiply(watch: Watcher, call: Call) -> Known:
    """A mask times data is applied; times a number it is a mask; noise times data is noise."""
    first, second = call.args[0], call.argument(1)
    kinds = [_kind_of(watch, arg) for arg in (first, second)]
    is_division = call.operation.name in ("div", "true_divide")
    if is_division and kinds[1] in ("mask", "number"):
        return None
    if set(kinds) == {"mask", "data"}:
        mask, data = (first, second) if kinds[0] == "mask" else (second, first)
        return watch.apply(mask, "zero", data)
    if set(kinds) == {"number", "data"}:
        _use_noise(watch.value_of(first if kinds[0] == "number" else second), "multiplied")
        return None
    if kinds == ["mask", "mask"]:
        return _combine(watch, call)
    if "data" not in kinds:
        return NotImplemented
    data, factor = (first, second) if kinds[0] == "data" else (second, first)
    if kinds == ["data", "data"] or watch.is_backward or (is_division and factor is first):
        return None
    return _with_factor(watch.value_of(data), data, factor, is_division=is_division)


def _kind_of(watch: Watcher, argument: Any) -> str:
    """Return "mask", "number", "data", or "constant", for one number, as often as it may be."""
    value = watch.value_of(argument)
    if value is not None and value.kind != "data":
        return value.kind
    is_filled = value is not None and value.is_filled
    return "constant" if is_number(argument) or is_filled else "data"


def _with_factor(value: Value | None, data: Any, factor: Any, *, is_division: bool) -> Value | None:
    """Return data that is multiplied with one number, which is remembered."""
    if not isinstance(data, torch.Tensor) or not data.is_floating_point():
        return None
    number = constant_of(factor) or 0.0
    number = (1 / number if number else math.inf) if is_division else number
    value = value or Value("data")
    if value.application is not None:
        value.application.later.append(number)
        return value
    return dataclasses.replace(value, factors=(*value.factors, number))


def _use_noise(value: Value | None, use: Any) -> None:
    for draw in value.draws if value else ():
        if draw.use != "multiplied":
            draw.use = use


def _combine(watch: Watcher, call: Call) -> Known:
    """A decision and a condition of data stay the decision; two decisions are a new one."""
    values = [watch.value_of(arg) for arg in call.args[:2]]
    masks = [value for value in values if value is not None and value.kind == "mask"]
    if not masks:
        return NotImplemented
    if len({id(value.decision) for value in masks}) == 1:
        return masks[0]
    draws = tuple(dict.fromkeys(draw for value in masks for draw in value.draws))
    return watch.decide(draws, None)


def _add(watch: Watcher, call: Call) -> Known:
    """A mask added to data is a bias (of -inf: DropKey); 1 - mask is a mask; noise is noise."""
    first, second = call.args[0], call.argument(1)
    kinds = [_kind_of(watch, arg) for arg in (first, second)]
    if set(kinds) == {"mask", "data"}:
        mask, data = (first, second) if kinds[0] == "mask" else (second, first)
        watch.apply(mask, "bias", data)
        return None
    if set(kinds) == {"number", "data"}:
        _use_noise(watch.value_of(first if kinds[0] == "number" else second), "added")
        return None
    if kinds == ["mask", "mask"]:
        return _combine(watch, call)
    return None if "data" in kinds else NotImplemented


def _choose(watch: Watcher, call: Call) -> Value | None:
    """torch.where, masked_fill and x[mask] = number: a decision that chooses is applied."""
    name = call.operation.name
    if name == "where":
        chooser, if_true, if_false = call.args[0], call.argument(1), call.argument(2)
    elif name == "masked_fill":
        if_false, chooser, if_true = call.args
    else:
        if_false, (chooser, *more), if_true = call.args[:3]
        if more or not isinstance(chooser, torch.Tensor):
            return None
    if _kind_of(watch, chooser) != "mask":
        return _choose_by_data(watch, (if_true, if_false))
    cases = [(case, _kind_of(watch, case)) for case in (if_true, if_false)]
    data = [case for case, kind in cases if kind == "data" and not _is_filled(case)]
    if not data:
        return watch.value_of(chooser)
    if len(data) == 2:
        return watch.apply(chooser, "mix", data[0])
    number = constant_of(if_false if data[0] is if_true else if_true)
    use: Use = "replace"
    if number is not None and data[0].is_floating_point():
        use = "zero" if number == 0 else "bias" if number <= _BIAS else "replace"
    return watch.apply(chooser, use, data[0], flips=data[0] is if_false)


def _is_filled(case: Any) -> bool:
    """Whether a tensor is filled with one number, such as torch.zeros_like(x)."""
    return constant_of(case) is not None and not (
        isinstance(case, torch.Tensor) and case.requires_grad
    )


def _choose_by_data(watch: Watcher, cases: tuple[Any, Any]) -> Value | None:
    """A mask where the data says so, and a number elsewhere, is a mask."""
    kinds = [_kind_of(watch, case) for case in cases]
    if "data" in kinds or "mask" not in kinds:
        return None
    return watch.value_of(cases[kinds.index("mask")])


def _decide_in_python(watch: Watcher, call: Call) -> Value | None:
    """`if mask:` and `u.item() < rate` choose a branch of the program."""
    tensor = call.args[0]
    value = watch.value_of(tensor)
    if value is None or value.kind == "data":
        return None
    if value.kind == "mask":
        watch.apply(tensor, "branch", None)
    elif value.grid is not None:
        watch.branch(value)
    return None


def _product(watch: Watcher, call: Call) -> Value | None:
    """A mask in a matrix product with data is applied."""
    kinds = [_kind_of(watch, arg) for arg in call.args]
    if "mask" in kinds and "data" in kinds:
        mask = call.args[kinds.index("mask")]
        watch.apply(mask, "product", mask)
    return None


_RULES: dict[str, Callable[[Watcher, Call], Known]] = {
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), _compare),
    **dict.fromkeys(("floor", "ceil", "round", "trunc"), _round),
    **dict.fromkeys(_COPIES, _copy),
    **dict.fromkeys(("mul", "div", "true_divide"), _multiply),
    **dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_xor"), _combine),
    **dict.fromkeys(("logical_and", "logical_or", "logical_xor"), _combine),
    **dict.fromkeys(("add", "sub", "rsub"), _add),
    **dict.fromkeys(("where", "masked_fill", "index_put"), _choose),
    **dict.fromkeys(("mm", "bmm", "matmul", "addmm", "baddbmm"), _product),
    "_local_scalar_dense": _decide_in_python,
}
