"""Watch the operations of PyTorch while a model runs: what is drawn, decided and applied."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dropout_jax.audit._graph import Use
from dropout_jax.audit._torch_calls import Call, describe, list_tensors
from dropout_jax.audit._torch_draws import find_generator, name_state, record_draw
from dropout_jax.audit._torch_follow import follow, follow_any
from dropout_jax.audit._torch_frames import (
    UNREGISTERED,
    Origin,
    clean_path,
    find_origin,
    find_unregistered,
    name_modules,
)
from dropout_jax.audit._torch_state import list_module_tensors, seed_generators
from dropout_jax.audit._torch_values import (
    Application,
    Decision,
    Draw,
    Value,
    dtype_of,
    even_factor,
    find_shared_axes,
    to_mask,
    tolerance_of,
)

_FILLS = ("ones", "ones_like", "new_ones", "full", "full_like", "new_full", "fill")
BINARY = 64  # elements, at least, of a buffer that is taken for a mask


class Watch(TorchDispatchMode):
    """The mode in which a model runs.

    Args:
      model: whose modules are named.
      stop: the code of the function that runs the model.
      padding: where the padding of the batch is, or None.
    """

    def __init__(self, model: nn.Module, stop: CodeType, padding: np.ndarray | None) -> None:
        super().__init__()
        self._names, self._stop, self._padding = name_modules(model), stop, padding
        self._values: dict[tuple | None, Value] = {}
        self._masks: dict[tuple, weakref.ref[torch.Tensor]] = {}
        self.draws: list[Draw] = []
        self.decisions: list[Decision] = []
        self.compiled: list[Origin] = []
        self.is_backward, self.is_seeded, self.has_other_generator = False, False, False
        self.seed, self._draw_count = 0, 0

    def begin(self, model: nn.Module, seed: int | None) -> None:
        """Begin a step: forget what was, but for the masks that are still there; seed, or not."""
        in_use = {
            storage
            for module in model.modules()
            for storage in _name_storages(_list_buffers(module))
        }
        in_use |= {storage for storage, tensor in self._masks.items() if tensor() is not None}
        kept = {storage: value for storage, value in self._values.items() if storage in in_use}
        self._values = {name: value for name, value in kept.items() if value.kind != "data"}
        self.draws, self.compiled, self._draw_count = [], [], 0
        self.is_backward, self.is_seeded, self.has_other_generator = False, False, False
        self.decisions = [value.decision for value in self._values.values() if value.decision]
        for decision in self.decisions:
            decision.applications = []
        self._add_buffers(model)
        if seed is not None:
            self.seed = seed
            seed_generators(model, seed)

    def _add_buffers(self, model: nn.Module) -> None:
        """Take the tensors of the modules that are 0 or one other number for masks."""
        for path, module in model.named_modules():
            for tensor in _list_buffers(module):
                if self.value_of(tensor) or not _is_binary(tensor):
                    continue
                origin = Origin((), (), clean_path(path), is_compiled=False)
                decision = Decision(origin, (), to_mask(tensor), is_buffer=True)
                self.remember([tensor], Value("mask", decision=decision))
                self.decisions.append(decision)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation, and follow what is random through it."""
        call = Call(func, describe(func), args, kwargs or {})
        name, tensors = call.operation.name, call.tensors()
        if call.operation.is_random and not (name == "rrelu_with_noise" and not call.argument(4)):
            key = self._name_draw(call, tensors)
            out = func(*args, **call.kwargs)
            for tensor, value in record_draw(self, call, key, list_tensors(out)):
                self.remember([tensor], value)
            return out
        inputs = _name_storages(tensors)
        is_followed = name in ("mul", "div") or not self._values.keys().isdisjoint(inputs)
        is_filled = name in _FILLS and not self.is_backward
        result = Value("data", is_filled=True) if is_filled else None
        result = follow(self, call) if is_followed else result
        out = func(*args, **call.kwargs)
        outs = list_tensors(out)
        if result is NotImplemented:
            result = follow_any(self, call, outs[0]) if outs else None
        if result is not None and result.decision is not None and result.decision.mask is None:
            result.decision.mask = to_mask(outs[0])
        self.remember(outs, result, but=() if call.operation.is_in_place else inputs)
        return out

    def remember(
        self, tensors: list[torch.Tensor], value: Value | None, but: Sequence[tuple | None] = ()
    ) -> None:
        """Set what is known of tensors; None is nothing. What shares memory `but` is a view."""
        for tensor, storage in zip(tensors, _name_storages(tensors), strict=True):
            if storage in but:
                continue
            if value is None or storage is None:
                self._values.pop(storage, None)
                continue
            self._values[storage] = value
            if value.kind == "mask":
                self._masks[storage] = weakref.ref(tensor)

    def value_of(self, tensor: Any) -> Value | None:
        """Return what is known of a tensor; masks of the forward pass do not count in gradients."""
        storage = _name_storages([tensor])[0] if isinstance(tensor, torch.Tensor) else None
        value = self._values.get(storage)
        decision = value.decision if value else None
        is_other = self.is_backward and decision is not None and not decision.is_backward
        return None if is_other else value

    def find_origin(self) -> Origin:
        """Return where the operation comes from."""
        origin = find_origin(self._names, self._stop)
        stranger = find_unregistered(self._names, self._stop)
        if stranger:
            parts = (origin.module, f"({stranger}, {UNREGISTERED})")
            origin = dataclasses.replace(origin, module=".".join(filter(None, parts)))
        if origin.is_compiled:
            self.compiled.append(origin)
        return origin

    def _name_draw(self, call: Call, tensors: list[torch.Tensor]) -> tuple | None:
        """Return a name for a draw: the state of the generator, and a number; note who seeds it."""
        self._draw_count += 1
        generator, device = find_generator(call, tensors)
        if isinstance(generator, torch.Generator):
            self.has_other_generator = True
        elif hasattr(generator, "initial_seed"):
            self.is_seeded |= generator.initial_seed() != self.seed
        state = name_state(generator, device)
        return None if state is None else (*state, self._draw_count)

    def draw(self, generator: str, shape: tuple[int, ...], key: tuple | None) -> Draw:
        """Record a draw."""
        draw = Draw(self.find_origin(), generator, shape, key, self.is_seeded)
        if not self.is_backward:
            self.draws.append(draw)
        return draw

    def decide(
        self,
        draws: tuple[Draw, ...],
        probability: float | None,
        resolution: int = 53,
        *,
        is_independent: bool = True,
    ) -> Value:
        """Record a decision; its mask is what the operation returns."""
        decision = Decision(
            self.find_origin(),
            draws,
            probability=probability,
            resolution=resolution,
            is_independent=is_independent,
            is_backward=self.is_backward,
        )
        self.decisions.append(decision)
        return Value("mask", draws, decision)

    def apply(
        self, mask: torch.Tensor, use: Use, data: torch.Tensor | None, *, flips: bool = False
    ) -> Value | None:
        """Record that a mask meets data; return what is then known of the data."""
        value = self.value_of(mask)
        decision = value.decision if value else None
        if decision is None:
            return None
        kept, factor = to_mask(mask), 1.0
        if flips:
            kept = ~kept
        if use == "zero" and not flips:
            factor = even_factor(mask)
        known = self.value_of(data)
        factors = list(known.factors) if known else []
        if factor != 1.0:  # a whole number before a scaled mask is another scale, as sqrt(width)
            factors = [each for each in factors if not each.is_integer()]
            factors += [] if factor is None else [factor]
        elif known and known.application:
            factors += known.application.give_factor()
        shape = tuple(
            mask.shape if data is None else torch.broadcast_shapes(mask.shape, data.shape)
        )
        application = Application(
            self.find_origin(),
            use,
            kept,
            shape,
            dtype_of(data),
            find_shared_axes(kept, shape),
            factors,
            max(map(tolerance_of, (mask, data))),
            factor is not None and value is not None and value.is_independent,
            self._compare_with_padding(data, shape, use, kept),
        )
        decision.applications.append(application)
        return Value("data", application=application)

    def branch(self, value: Value) -> None:
        """Record that random numbers choose a branch of the program, nobody knows how."""
        decision = self.decide(value.draws, None).decision
        assert decision is not None
        application = Application(decision.origin, "branch", None, (), dtype_of(None), (), [], 0.0)
        decision.applications.append(application)

    def _compare_with_padding(
        self, data: torch.Tensor | None, shape: tuple[int, ...], use: Use, kept: np.ndarray
    ) -> str:
        """Return what the padding has to do with the data of a site."""
        if self._padding is None or data is None or tuple(data.shape) != shape:
            return ""
        if shape == self._padding.shape and not data.is_floating_point() and use == "replace":
            return "" if np.broadcast_to(kept, shape)[self._padding].all() else "replaced"
        for padding in _shapes_of_padding(self._padding):
            if math.prod(shape) != padding.size or shape[0] not in (len(padding), padding.size):
                continue
            values = data.detach().double().cpu().numpy().reshape(padding.shape)
            is_zero = values == 0
            if is_zero[padding].all() and padding.any() and not is_zero[~padding].all():
                return "mask" if len(np.unique(values[~padding])) == 1 else "masked"
        return "covered" if shape[: self._padding.ndim] == self._padding.shape else ""


class BackwardPass(TorchFunctionMode):
    """Tell the watch when gradients are computed."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run a function; PyTorch calls it for each of its own."""
        if func not in (torch.Tensor.backward, torch.autograd.grad):
            return func(*args, **(kwargs or {}))
        before, self._watch.is_backward = self._watch.is_backward, True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._watch.is_backward = before


def _shapes_of_padding(padding: np.ndarray) -> list[np.ndarray]:
    """Return the padding of all tokens, and of those that are predicted."""
    return [padding, padding[:, 1:], padding[:, :-1]] if padding.ndim == 2 else [padding]


def _list_buffers(module: nn.Module) -> list[torch.Tensor]:
    """Return the tensors of a module that are no parameters."""
    tensors = list_module_tensors(module)
    return [tensor for tensor in tensors if not isinstance(tensor, nn.Parameter)]


def _is_binary(tensor: torch.Tensor) -> bool:
    """Whether a tensor is 0 at some positions and one positive number at all others."""
    if tensor.numel() < BINARY or tensor.is_complex():
        return False
    top, is_zero = tensor.max(), tensor == 0
    is_mixed = bool(is_zero.any()) and bool(top > 0)
    return is_mixed and bool((is_zero | (tensor == top)).all())


def _name_storages(tensors: Iterable[torch.Tensor]) -> list[tuple | None]:
    """Return a name for the memory of each tensor; None if it has none."""
    names = []
    for tensor in tensors:
        try:
            pointer = tensor.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):
            pointer = 0
        names.append((tensor.device, pointer) if pointer else None)
    return names
