"""Watch the operations of PyTorch while a model runs: what is drawn, decided and applied."""

from __future__ import annotations

import dataclasses
import hashlib
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
from dropout_jax.audit._torch_follow import follow, follow_any
from dropout_jax.audit._torch_frames import (
    UNREGISTERED,
    Origin,
    clean_path,
    find_origin,
    find_unregistered,
    name_modules,
)
from dropout_jax.audit._torch_state import held_tensors, seed_generators
from dropout_jax.audit._torch_values import (
    BITS,
    GRID,
    Application,
    Decision,
    Draw,
    Value,
    even_factor,
    find_shared_axes,
    to_mask,
    uniform_grid,
)

_UNIFORM = ("rand", "rand_like", "uniform")
_INTEGERS = ("randint", "randint_like", "random")
_FILLS = ("ones", "ones_like", "new_ones", "full", "full_like", "new_full", "fill")
# Kernels that hide their masks, and where their rate, and whether they are in training, are.
_KERNELS = {
    "_scaled_dot_product_flash_attention": (3, None),
    "_scaled_dot_product_flash_attention_for_cpu": (3, None),
    "_scaled_dot_product_efficient_attention": (5, None),
    "_scaled_dot_product_cudnn_attention": (5, None),
    "_scaled_dot_product_fused_attention_overrideable": (4, None),
    "_cudnn_rnn": (11, 12),
    "miopen_rnn": (9, 10),
}
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
        held = {place for module in model.modules() for place in _places(_held(module))}
        held |= {place for place, tensor in self._masks.items() if tensor() is not None}
        kept = {place: value for place, value in self._values.items() if place in held}
        self._values = {place: value for place, value in kept.items() if value.kind != "data"}
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
            for tensor in _held(module):
                if self.value_of(tensor) or not _is_binary(tensor):
                    continue
                origin = Origin((), (), clean_path(path), is_compiled=False)
                decision = Decision(origin, (), to_mask(tensor), is_buffer=True)
                self._remember([tensor], Value("mask", decision=decision))
                self.decisions.append(decision)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation, and follow what is random through it."""
        call = Call(func, describe(func), args, kwargs or {})
        name, tensors = call.operation.name, call.tensors()
        if call.operation.is_random and not (name == "rrelu_with_noise" and not call.argument(4)):
            key = self._name_state(call, tensors)
            out = func(*args, **call.kwargs)
            self._record_draw(call, key, list_tensors(out))
            return out
        inputs = _places(tensors)
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
        self._remember(outs, result, but=() if call.operation.is_in_place else inputs)
        return out

    def _remember(
        self, tensors: list[torch.Tensor], value: Value | None, but: Sequence[tuple | None] = ()
    ) -> None:
        """Set what is known of tensors; None is nothing. What shares memory `but` is a view."""
        for tensor, place in zip(tensors, _places(tensors), strict=True):
            if place in but:
                continue
            if value is None or place is None:
                self._values.pop(place, None)
                continue
            self._values[place] = value
            if value.kind == "mask":
                self._masks[place] = weakref.ref(tensor)

    def value_of(self, tensor: Any) -> Value | None:
        """Return what is known of a tensor; masks of the forward pass do not count in gradients."""
        place = _places([tensor])[0] if isinstance(tensor, torch.Tensor) else None
        value = self._values.get(place)
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
        shape = () if data is None else tuple(torch.broadcast_shapes(mask.shape, data.shape))
        application = Application(
            self.find_origin(),
            use,
            kept,
            shape,
            find_shared_axes(kept, shape),
            factors,
            max(map(_tolerance, (mask, data))),
            factor is not None and value is not None and value.is_independent,
            self._compare_with_padding(data, shape),
        )
        decision.applications.append(application)
        return Value("data", application=application)

    def branch(self, value: Value) -> None:
        """Record that random numbers choose a branch of the program, nobody knows how."""
        decision = self.decide(value.draws, None).decision
        assert decision is not None
        application = Application(decision.origin, "branch", None, (), (), [], 0.0)
        decision.applications.append(application)

    def _compare_with_padding(self, data: torch.Tensor | None, shape: tuple[int, ...]) -> str:
        """Return what the padding has to do with the data of a site."""
        if self._padding is None or data is None or tuple(data.shape) != shape:
            return ""
        for padding in _shapes_of_padding(self._padding):
            if math.prod(shape) != padding.size or shape[0] not in (len(padding), padding.size):
                continue
            values = data.detach().double().cpu().numpy().reshape(padding.shape)
            is_zero = values == 0
            if is_zero[padding].all() and padding.any() and not is_zero[~padding].all():
                return "mask" if len(np.unique(values[~padding])) == 1 else "masked"
        return "covered" if shape[: self._padding.ndim] == self._padding.shape else ""

    def _record_draw(self, call: Call, key: tuple | None, outs: list[torch.Tensor]) -> None:
        name = call.operation.name
        if name in _KERNELS or name == "native_dropout":
            self._record_kernel(call, key, outs)
            return
        if not outs or not outs[0].numel():
            return
        draw = Draw(self.find_origin(), f"aten.{name}", tuple(outs[0].shape), key, self.is_seeded)
        if not self.is_backward:
            self.draws.append(draw)
        if name == "bernoulli":
            value = self._decide_bernoulli(call, draw)
            assert value.decision is not None
            value.decision.mask = to_mask(outs[0])
        else:
            grid = _draw_grid(call, outs[0])
            bits = BITS.get(outs[0].dtype, 53)
            if name in _INTEGERS and grid is not None and math.log2(len(grid)).is_integer():
                bits = round(math.log2(len(grid)))
            value = Value("number", (draw,), grid=grid, bits=bits)
        if name == "rrelu_with_noise":
            draw.use, value = "multiplied", None
        self._remember(outs, value)

    def _decide_bernoulli(self, call: Call, draw: Draw) -> Value:
        """Record torch.bernoulli: the probability of 1 is a number, or the tensor's."""
        is_own = call.operation.overload == "default" and not call.operation.is_in_place
        probability = call.args[0] if is_own else call.argument(1, call.kwargs.get("p", 0.5))
        if not isinstance(probability, torch.Tensor):
            return self.decide((draw,), float(probability))
        low, high = float(probability.min()), float(probability.max())
        bits = BITS.get(probability.dtype, 53)
        return self.decide((draw,), low if low == high else None, bits, is_independent=low == high)

    def _record_kernel(self, call: Call, key: tuple | None, outs: list[torch.Tensor]) -> None:
        """Record a kernel that draws, decides and applies at once."""
        name = call.operation.name
        number, switch = (1, 2) if name == "native_dropout" else _KERNELS[name]
        rate = float(call.argument(number, call.kwargs.get("dropout_p", 0.0)) or 0.0)
        self._remember(outs, None)
        if not rate or (switch is not None and call.argument(switch, True) is False):
            return
        shape = tuple(outs[0].shape)
        if "attention" in name:
            query, key_tensor = call.args[:2]
            shape = (*query.shape[:-1], key_tensor.shape[-2])
        draw = Draw(self.find_origin(), f"aten.{name}", shape, key, self.is_seeded)
        value = self.decide((draw,), 1 - rate)
        assert value.decision is not None
        if name != "native_dropout":
            scale, eps = [1 / (1 - rate)] if rate < 1 else [], _tolerance(outs[0])
            application = Application(draw.origin, "zero", None, shape, (), scale, eps)
            value.decision.applications.append(application)
            return
        out, mask = outs
        value.decision.mask = to_mask(mask)
        self._remember([mask], value)
        data = self.value_of(call.args[0])
        if data is not None and data.is_filled:
            self._remember([out], value)
            return
        applied = self.apply(mask, "zero", call.args[0])
        if applied and applied.application:
            applied.application.later += [1 / (1 - rate)] if rate < 1 else []
            self._remember([out], applied)

    def _name_state(self, call: Call, tensors: list[torch.Tensor]) -> tuple | None:
        """Return a name for the draw: the generator and its state; note whether it was seeded."""
        self._draw_count += 1
        values = [*call.args, *call.kwargs.values()]
        generator = next((value for value in values if isinstance(value, torch.Generator)), None)
        device = tensors[0].device if tensors else torch.device(call.kwargs.get("device") or "cpu")
        library: Any = torch if device.type == "cpu" else getattr(torch, device.type, None)
        if generator is not None:
            self.has_other_generator = True
            device, state = generator.device, generator.get_state()
        elif library is None or not hasattr(library, "initial_seed"):
            return None
        else:
            self.is_seeded |= library.initial_seed() != self.seed
            state = torch.get_rng_state() if library is torch else library.get_rng_state(device)
        return str(device), _digest(state), self._draw_count


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


def _held(module: nn.Module) -> list[torch.Tensor]:
    """Return the tensors of a module that are no parameters."""
    tensors = held_tensors(module)
    return [tensor for tensor in tensors if not isinstance(tensor, nn.Parameter)]


def _is_binary(tensor: torch.Tensor) -> bool:
    """Whether a tensor is 0 in some places and one positive number in all others."""
    if tensor.numel() < BINARY or tensor.is_complex():
        return False
    top, is_zero = tensor.max(), tensor == 0
    is_mixed = bool(is_zero.any()) and bool(top > 0)
    return is_mixed and bool((is_zero | (tensor == top)).all())


def _places(tensors: Iterable[torch.Tensor]) -> list[tuple | None]:
    """Return a name for the memory of each tensor; None if it has none."""
    places = []
    for tensor in tensors:
        try:
            pointer = tensor.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):
            pointer = 0
        places.append((tensor.device, pointer) if pointer else None)
    return places


def _digest(state: torch.Tensor) -> str:
    return hashlib.blake2b(state.cpu().numpy().tobytes(), digest_size=16).hexdigest()


def _draw_grid(call: Call, out: torch.Tensor) -> torch.Tensor | None:
    """Return the numbers that a draw takes with equal probability, if they are known and few."""
    name, numbers = call.operation.name, [arg for arg in call.args if isinstance(arg, int | float)]
    if name in _INTEGERS:
        low, high = ([0, *numbers] if len(numbers) == 1 else numbers or [0, 0])[-2:]
        size = int(high) - int(low)
        return torch.arange(low, high, device=out.device) if 0 < size <= GRID else None
    grid = uniform_grid(out.dtype, out.device) if name in _UNIFORM else None
    if grid is None or name != "uniform" or not numbers:
        return grid
    low, high = [*numbers, 1.0][:2]
    return grid * (high - low) + low


def _tolerance(tensor: torch.Tensor | None) -> float:
    """Return twice the precision of a tensor."""
    if tensor is None or not tensor.is_floating_point():
        return 0.0
    return 2 * torch.finfo(tensor.dtype).eps
