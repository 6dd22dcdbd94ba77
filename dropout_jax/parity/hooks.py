"""Set and record the masks of the dropout sites of a PyTorch model.

A site is an nn.Dropout of the model; its name is its path among the modules with "/" for ".", such
as "block/0/attn_out". Both functions add forward hooks and leave the code of the model unchanged;
`remove()` on their result removes the hooks.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
    from torch import nn
    from torch.utils.hooks import RemovableHandle
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "dropout_jax.parity.hooks needs PyTorch: pip install torch", name=missing.name
    ) from None


class Hooks:
    """The forward hooks of a model, to remove together.

    Args:
      handles: of the hooks, from PyTorch.
    """

    def __init__(self, handles: Iterable[RemovableHandle]) -> None:
        self._handles = list(handles)

    def remove(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def give_masks(model: nn.Module, masks: Mapping[str, Any], *, scale: float | None = None) -> Hooks:
    """Set the masks of a PyTorch model in training mode, site by site, from any source.

    Formula: y = x * scale where the mask keeps it, else 0.

    Args:
      model: any module; its nn.Dropout modules are its sites.
      masks: a bool array (True is kept) for every site, by name. The hooks read it at each call, so
        it may change from step to step.
      scale: the factor of what is kept; None is 1 / (1 - p), as in PyTorch. dropout_jax has
        65536 / round((1 - p) * 65536).

    Returns:
      The hooks; `remove()` removes them.

    Raises:
      ValueError: the model has no nn.Dropout; at a call, a mask is missing or has a wrong shape.

    Source: torch.nn.Module.register_forward_hook. Dropout in a function (F.dropout, and
      scaled_dot_product_attention with dropout_p) has no module, so no hook can change it.

    Example:
      >>> import numpy as np, torch
      >>> from dropout_jax.parity import hooks
      >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5))
      >>> handles = hooks.give_masks(model, {"0": np.array([True, False])})
      >>> model(torch.ones(2))
      tensor([2., 0.])
    """

    def apply_mask(name: str, module: nn.Dropout, args: tuple, _: Any) -> torch.Tensor:
        (x,) = args
        if not module.training or module.p == 0:
            return x
        keep = _check_mask(name, masks, tuple(x.shape)).to(x.device)
        factor = 1 / (1 - module.p) if scale is None else scale
        return torch.where(keep, x * factor, torch.zeros_like(x))

    return _hook_every_site(model, apply_mask)


def record(model: nn.Module, tape: MutableMapping[str, dict[str, Any]]) -> Hooks:
    """Record the input, the mask, the output and the line of code of every site that drops.

    Formula: the mask is True where the output is not 0, and where the input is 0, which does not
    show the decision.

    Args:
      model: any module; its nn.Dropout modules are its sites. Call `give_masks`
        before it.
      tape: the result, by the name of the site, in the order of the forward pass: {"input", "mask",
        "output"} as NumPy arrays, and "where", the file and line that called the site.

    Returns:
      The hooks; `remove()` removes them.

    Raises:
      ValueError: the model has no nn.Dropout.

    Source: torch.nn.Module.register_forward_hook.

    Example:
      >>> import torch
      >>> from dropout_jax.parity import hooks
      >>> model, tape = torch.nn.Sequential(torch.nn.Dropout(0.5)), {}
      >>> handles = hooks.record(model, tape)
      >>> y = model(torch.ones(3))
      >>> bool((tape["0"]["mask"] == (y != 0).numpy()).all())
      True
    """

    def write_record(name: str, module: nn.Dropout, args: tuple, y: torch.Tensor) -> None:
        if module.training and module.p > 0:
            x, y_array = (_to_numpy(value) for value in (args[0], y))
            keep = (y_array != 0) | (x == 0)
            tape[name] = {"input": x, "mask": keep, "output": y_array, "where": _find_caller()}

    return _hook_every_site(model, write_record)


def _hook_every_site(model: nn.Module, hook: Callable) -> Hooks:
    sites = {
        name.replace(".", "/"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout)
    }
    if not sites:
        raise ValueError(
            f"model={type(model).__name__} is not allowed: it must have nn.Dropout modules. "
            "Replace its F.dropout calls by modules: self.drop = nn.Dropout(p)."
        )
    return Hooks(
        module.register_forward_hook(functools.partial(hook, name))
        for name, module in sites.items()
    )


def _check_mask(name: str, masks: Mapping[str, Any], shape: tuple[int, ...]) -> torch.Tensor:
    if name not in masks:
        raise ValueError(
            f"masks={sorted(masks)} is not allowed: it must have one for {name!r}, of shape "
            f"{shape}. Add masks[{name!r}]."
        )
    keep = torch.from_numpy(np.array(masks[name]))
    if keep.dtype != torch.bool or tuple(keep.shape) != shape:
        raise ValueError(
            f"masks[{name!r}] of {keep.dtype} and shape {tuple(keep.shape)} is not allowed: it "
            f"must be bool and of shape {shape}. Convert it: mask.astype(bool).reshape(shape)."
        )
    return keep


def _to_numpy(value: torch.Tensor) -> np.ndarray:
    """Copy to NumPy, which has no bfloat16; float32 holds it exactly."""
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()


def _find_caller() -> str:
    """Find the file and line that called the site: the caller of PyTorch."""
    frame = sys._getframe(2)
    library = Path(torch.__file__).parent
    for is_torch in (False, True):  # the hook, which PyTorch calls, which the caller calls
        while (library in Path(frame.f_code.co_filename).parents) == is_torch:
            if frame.f_back is None:
                break
            frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
