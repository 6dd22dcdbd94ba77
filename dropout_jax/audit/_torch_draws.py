"""Record the operations of PyTorch that draw random numbers, and the kernels that drop."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch

from dropout_jax.audit._torch_calls import Call
from dropout_jax.audit._torch_follow import Watcher
from dropout_jax.audit._torch_values import (
    BITS,
    GRID,
    Application,
    Draw,
    Value,
    dtype_of,
    to_mask,
    tolerance_of,
    uniform_grid,
)

_UNIFORM = ("rand", "rand_like", "uniform")
_INTEGERS = ("randint", "randint_like", "random")
# Kernels that hide their masks, and where their rate, and whether they are in training, are.
_ATTENTION = {
    "_scaled_dot_product_flash_attention": (3, None),
    "_scaled_dot_product_flash_attention_for_cpu": (3, None),
    "_scaled_dot_product_efficient_attention": (5, None),
    "_scaled_dot_product_cudnn_attention": (5, None),
    "_scaled_dot_product_fused_attention_overrideable": (4, None),
}
_RECURRENT = {"_cudnn_rnn": (11, 12), "miopen_rnn": (9, 10)}
_KERNELS = {**_ATTENTION, **_RECURRENT, "native_dropout": (1, 2)}


def find_generator(call: Call, tensors: list[torch.Tensor]) -> tuple[Any, torch.device]:
    """Return the generator that a call names, or the library of its device; and the device."""
    values = [*call.args, *call.kwargs.values()]
    generator = next((value for value in values if isinstance(value, torch.Generator)), None)
    if generator is not None:
        return generator, generator.device
    device = tensors[0].device if tensors else torch.device(call.kwargs.get("device") or "cpu")
    return torch if device.type == "cpu" else getattr(torch, device.type, None), device


def name_state(generator: Any, device: torch.device) -> tuple[str, str] | None:
    """Return a name for the state of a generator; None if nobody can read it."""
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
    elif generator is torch:
        state = torch.get_rng_state()
    elif hasattr(generator, "get_rng_state"):
        state = generator.get_rng_state(device)
    else:
        return None
    digest = hashlib.blake2b(state.cpu().numpy().tobytes(), digest_size=16).hexdigest()
    return str(device), digest


def record_draw(
    watch: Watcher, call: Call, key: tuple | None, outs: list[torch.Tensor]
) -> list[tuple[torch.Tensor, Value | None]]:
    """Record a draw, and return what is known of its results."""
    name = call.operation.name
    if name in _KERNELS:
        return _record_kernel(watch, call, key, outs)
    if not outs or not outs[0].numel():
        return []
    draw = watch.draw(f"aten.{name}", tuple(outs[0].shape), key)
    if name == "rrelu_with_noise":
        draw.use = "multiplied"
        return [(out, None) for out in outs]
    if name == "bernoulli":
        value = _decide_bernoulli(watch, call, draw)
        assert value.decision is not None
        value.decision.mask = to_mask(outs[0])
    else:
        grid, bits = _draw_grid(call, outs[0]), BITS.get(outs[0].dtype, 53)
        if name in _INTEGERS and grid is not None and math.log2(len(grid)).is_integer():
            bits = round(math.log2(len(grid)))
        value = Value("number", (draw,), grid=grid, bits=bits)
    return [(out, value) for out in outs]


def _decide_bernoulli(watch: Watcher, call: Call, draw: Draw) -> Value:
    """Record torch.bernoulli: the probability of 1 is a number, or the tensor's."""
    is_own = call.operation.overload == "default" and not call.operation.is_in_place
    probability = call.args[0] if is_own else call.argument(1, call.kwargs.get("p", 0.5))
    if not isinstance(probability, torch.Tensor):
        return watch.decide((draw,), float(probability))
    low, high = float(probability.min()), float(probability.max())
    bits = BITS.get(probability.dtype, 53)
    return watch.decide((draw,), low if low == high else None, bits, is_independent=low == high)


def _draw_grid(call: Call, out: torch.Tensor) -> torch.Tensor | None:
    """Return the numbers that a draw takes with equal probability, if they are known and few."""
    name, numbers = call.operation.name, [arg for arg in call.args if isinstance(arg, int | float)]
    if name in _INTEGERS:
        low, high = ([0, *numbers] if len(numbers) == 1 else numbers or [0, 0])[-2:]
        is_small = 0 < int(high) - int(low) <= GRID
        return torch.arange(low, high, device=out.device) if is_small else None
    grid = uniform_grid(out.dtype, out.device) if name in _UNIFORM else None
    if grid is None or name != "uniform" or not numbers:
        return grid
    low, high = [*numbers, 1.0][:2]
    return grid * (high - low) + low


def _record_kernel(
    watch: Watcher, call: Call, key: tuple | None, outs: list[torch.Tensor]
) -> list[tuple[torch.Tensor, Value | None]]:
    """Record a kernel that draws, decides and applies at once."""
    name = call.operation.name
    number, switch = _KERNELS[name]
    rate = float(call.argument(number, call.kwargs.get("dropout_p", 0.0)) or 0.0)
    nothing: list[tuple[torch.Tensor, Value | None]] = [(out, None) for out in outs]
    if not rate or (switch is not None and call.argument(switch, True) is False):
        return nothing
    shape = tuple(outs[0].shape)
    if name in _ATTENTION:
        query, keys = call.args[:2]
        shape = (*query.shape[:-1], keys.shape[-2])
    draw = watch.draw(f"aten.{name}", shape, None if name in _RECURRENT else key)
    value = watch.decide((draw,), 1 - rate)
    scale = [1 / (1 - rate)] if rate < 1 else []
    assert value.decision is not None
    if name == "native_dropout":
        return _record_native_dropout(watch, call, outs, value, scale)
    data, eps = dtype_of(outs[0]), tolerance_of(outs[0])
    application = Application(draw.origin, "zero", None, shape, data, (), scale, eps)
    value.decision.applications.append(application)
    return nothing


def _record_native_dropout(
    watch: Watcher, call: Call, outs: list[torch.Tensor], value: Value, scale: list[float]
) -> list[tuple[torch.Tensor, Value | None]]:
    """Record the kernel of F.dropout on a GPU, which returns its mask."""
    out, mask = outs
    assert value.decision is not None
    value.decision.mask = to_mask(mask)
    watch.remember([mask], value)
    data = watch.value_of(call.args[0])
    if data is not None and data.is_filled:
        return [(out, value), (mask, value)]
    applied = watch.apply(mask, "zero", call.args[0])
    if applied is not None and applied.application is not None:
        applied.application.later += scale
    return [(out, applied), (mask, value)]
