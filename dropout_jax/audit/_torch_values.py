"""What the auditor knows of PyTorch's tensors: random numbers, decisions, masks, and data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from dropout_jax.audit._graph import NoiseUse, Use
from dropout_jax.audit._statistics import chance_of_constant
from dropout_jax.audit._torch_frames import Origin

BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
GRID = 1 << 16  # numbers that stand for those of a generator with many bits
UNLIKELY = 1e-6


@dataclasses.dataclass(eq=False)
class Draw:
    """One operation that draws random numbers.

    Args:
      origin: where it is called.
      generator: the operation.
      shape: of the numbers.
      key: names the generator, its state and the number of the draw; None if it has no state.
      is_seeded: whether the generator has been seeded since the step began.
      use: what the numbers do to data, where no decision is made of them.
    """

    origin: Origin
    generator: str
    shape: tuple[int, ...]
    key: tuple | None
    is_seeded: bool = False
    use: NoiseUse = "other"


@dataclasses.dataclass(eq=False)
class Application:
    """One operation where a decision meets data.

    Args:
      origin: where it is called.
      use: what the decision does.
      kept: what is kept, without the axes that are only repeated; None if nobody can see it.
      shape: of the data.
      dtype: of the data.
      shared_axes: along which all have one decision.
      factors: numbers that the data is multiplied with before it, or in it.
      tolerance: how far the scale may be from 1 / kept.
      is_plain: whether the mask is that of the decision, and all that is kept has one factor.
      padding: what the padding has to do with the data, if it was declared.
      later: numbers that the data is multiplied with after it.
    """

    origin: Origin
    use: Use
    kept: np.ndarray | None
    shape: tuple[int, ...]
    dtype: Any
    shared_axes: tuple[int, ...]
    factors: list[float]
    tolerance: float
    is_plain: bool = True
    padding: str = ""
    later: list[float] = dataclasses.field(default_factory=list)

    def give_factor(self) -> list[float]:
        """Give the last factor to the next application, if it has a factor without it."""
        return [self.later.pop()] if self.later and len(self.factors) + len(self.later) > 1 else []


@dataclasses.dataclass(eq=False)
class Decision:
    """One operation that makes booleans, or zeros and ones, of random numbers.

    Args:
      origin: where it is called.
      draws: the random numbers.
      mask: the booleans; None before the operation has run, and in a kernel that hides them.
      probability: of True, if it is known.
      resolution: the random bits that decide.
      is_independent: whether its elements do not depend on each other.
      is_backward: whether the backward pass makes it.
      is_buffer: whether it was there before the step, in a tensor of a module.
      applications: where it meets data.
    """

    origin: Origin
    draws: tuple[Draw, ...]
    mask: np.ndarray | None = None
    probability: float | None = None
    resolution: int = 53
    is_independent: bool = True
    is_backward: bool = False
    is_buffer: bool = False
    applications: list[Application] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """What is known of a tensor, and of all that share its memory.

    Args:
      kind: random numbers, a mask, or data.
      draws: the random numbers that it comes from.
      decision: that a mask is made of.
      grid: numbers that a random number takes with equal probability, in their order of the
        generator; None if nobody knows them.
      bits: of a random number.
      is_independent: whether the elements do not depend on each other.
      is_filled: whether one number fills data, as torch.ones does.
      factors: numbers that data is multiplied with.
      application: the last one, of data that nothing else has changed since.
    """

    kind: Literal["number", "mask", "data"]
    draws: tuple[Draw, ...] = ()
    decision: Decision | None = None
    grid: torch.Tensor | None = None
    bits: int = 53
    is_independent: bool = True
    is_filled: bool = False
    factors: tuple[float, ...] = ()
    application: Application | None = None


def uniform_grid(dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """Return numbers that stand for all that torch.rand draws with this dtype."""
    bits = BITS.get(dtype)
    if bits is None:
        return None
    if device.type == "cpu" and bits <= 11:  # a CPU draws as many bits as the dtype has
        return (torch.arange(1 << bits, device=device) / (1 << bits)).to(dtype)
    return ((torch.arange(GRID, device=device, dtype=torch.float64) + 0.5) / GRID).to(dtype)


def map_grid(value: Value, call: Callable[[torch.Tensor], Any]) -> torch.Tensor | None:
    """Return what an operation makes of the grid of random numbers; None if it cannot be known."""
    if value.grid is None:
        return None
    result = call(value.grid.clone())
    is_elementwise = isinstance(result, torch.Tensor) and result.shape == value.grid.shape
    return result if is_elementwise else None


def share_of_true(grid: torch.Tensor | None) -> float | None:
    """Return the probability that a decision is True, from its values on the grid."""
    return None if grid is None else float((grid != 0).double().mean())


def to_mask(tensor: torch.Tensor) -> np.ndarray:
    """Return where a tensor is not 0, without the axes along which it is only repeated."""
    repeated = zip(tensor.stride(), tensor.shape, strict=True)
    parts = tuple(slice(0, 1) if not stride and size else slice(None) for stride, size in repeated)
    return (tensor.detach()[parts] != 0).cpu().numpy()


def even_factor(tensor: torch.Tensor) -> float | None:
    """Return the one number that a mask has where it is not 0; None if there are several."""
    if tensor.dtype == torch.bool or not tensor.numel():
        return 1.0
    tensor = tensor.detach()
    low, high = float(tensor.min()), float(tensor.max())
    factor = high if high > 0 else low
    is_even = low >= 0 or high <= 0
    rest = tensor[(tensor != 0) & ((tensor - factor).abs() > 1e-5 * abs(factor))]
    return (factor or 1.0) if is_even and not rest.numel() else None


def find_shared_axes(kept: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of data along which all have one decision, and not by chance."""
    if not kept.size or kept.all() or not kept.any():
        return ()
    kept = kept.reshape((1,) * (len(shape) - kept.ndim) + kept.shape)
    share = float(kept.mean())
    axes = []
    for axis, size in enumerate(shape):
        along = kept.shape[axis]
        if size < 2:
            continue
        if along > 1:
            if not (kept == kept.take([0], axis)).all():
                continue
            if chance_of_constant(share, along, kept.size // along) > UNLIKELY:
                continue
        axes.append(axis)
    return tuple(axes)


def is_kept_where_true(kept: np.ndarray, mask: np.ndarray) -> bool | None:
    """Return whether a decision keeps where it is True; None if it does neither."""
    if kept.size == mask.size:
        kept, mask = kept.ravel(), mask.ravel()
    try:
        kept, mask = np.broadcast_arrays(kept, mask)
    except ValueError:
        return None
    if not (kept & ~mask).any():
        return True
    return None if (kept & mask).any() else False


def tolerance_of(tensor: torch.Tensor | None) -> float:
    """Return twice the precision of a tensor."""
    if tensor is None or not tensor.is_floating_point():
        return 0.0
    return 2 * torch.finfo(tensor.dtype).eps


def dtype_of(tensor: torch.Tensor | None) -> Any:
    """Return NumPy's dtype of a tensor, or its name where NumPy has none."""
    name = "bool" if tensor is None else str(tensor.dtype).removeprefix("torch.")
    try:
        return np.dtype(name)
    except TypeError:
        return name
