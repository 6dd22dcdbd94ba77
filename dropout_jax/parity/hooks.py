"""A PyTorch model's dropout sites: masks given to them, and a record of what they do.

A site is an nn.Dropout of the model; its name is its path among the modules with "/" for ".", such
as "block/0/attn_out". The model's code is left as it is: both work by forward hooks, and `remove()`
on what they return takes them off.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
    from torch import nn
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "dropout_jax.parity.hooks needs PyTorch: pip install torch", name=missing.name
    ) from None


class Hooks(list):
    """Hooks that can be taken off together."""

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self:
            hook.remove()
        self.clear()


def give_masks(model: nn.Module, masks: Mapping[str, Any], *, scale: float | None = None) -> Hooks:
    """Let masks from anywhere decide in a PyTorch model, site by site, in training mode.

    Formula: y = x * scale where the mask keeps it, else 0.

    Args:
      model: any module; its nn.Dropout modules are its sites.
      masks: a bool array (True is kept) for every site, by name; it is read at each call, so
        masks may be put into it step by step.
      scale: the factor of what is kept; None is PyTorch's 1 / (1 - p). dropout_jax's is
        65536 / round((1 - p) * 65536).

    Returns:
      The hooks; `remove()` takes them off.

    Raises:
      ValueError: the model has no nn.Dropout; at a call, a mask that is missing or misshapen.

    Source: torch.nn.Module.register_forward_hook. Dropout called as a function (F.dropout, and
      scaled_dot_product_attention with dropout_p) has no module and cannot be reached.

    Example:
      >>> import numpy as np, torch
      >>> from dropout_jax.parity import hooks
      >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5))
      >>> given = hooks.give_masks(model, {"0": np.array([True, False])})
      >>> model(torch.ones(2))
      tensor([2., 0.])
    """

    def decide(name: str, module, args, _):
        (x,) = args
        if not module.training or module.p == 0:
            return x
        keep = _mask_for(name, masks, tuple(x.shape)).to(x.device)
        factor = 1 / (1 - module.p) if scale is None else scale
        return torch.where(keep, x * factor, torch.zeros_like(x))

    return _hook_every_site(model, decide)


def record(model: nn.Module, tape: MutableMapping[str, dict[str, Any]]) -> Hooks:
    """Write down the input, the mask, the output and the line of code of every site that drops.

    Formula: the mask is where the output is not 0 or the input is (what is 0 shows no decision).

    Args:
      model: any module; its nn.Dropout modules are its sites. Hooks of `give_masks` come first.
      tape: gets {"input", "mask", "output"} as NumPy arrays and "where", the file and line that
        called the site, by the site's name, in the order of the forward pass.

    Returns:
      The hooks; `remove()` takes them off.

    Raises:
      ValueError: the model has no nn.Dropout.

    Source: torch.nn.Module.register_forward_hook.

    Example:
      >>> import torch
      >>> from dropout_jax.parity import hooks
      >>> model, tape = torch.nn.Sequential(torch.nn.Dropout(0.5)), {}
      >>> recording = hooks.record(model, tape)
      >>> y = model(torch.ones(3))
      >>> bool((tape["0"]["mask"] == (y != 0).numpy()).all())
      True
    """

    def write(name: str, module, args, y):
        if module.training and module.p > 0:
            arrays = [_as_numpy(value) for value in (args[0], y)]
            keep = (arrays[1] != 0) | (arrays[0] == 0)
            tape[name] = {"input": arrays[0], "mask": keep, "output": arrays[1], "where": _caller()}

    return _hook_every_site(model, write)


def _hook_every_site(model: nn.Module, hook: Callable) -> Hooks:
    sites = {
        name.replace(".", "/"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout)
    }
    if not sites:
        raise ValueError(
            f"model={type(model).__name__} is not allowed: it must have nn.Dropout modules. Make "
            "its F.dropout calls modules: self.drop = nn.Dropout(p)."
        )
    return Hooks(
        module.register_forward_hook(functools.partial(hook, name))
        for name, module in sites.items()
    )


def _mask_for(name: str, masks: Mapping[str, Any], shape: tuple[int, ...]) -> torch.Tensor:
    if name not in masks:
        raise ValueError(
            f"masks={sorted(masks)} are not allowed: there must be one for {name!r}, of shape "
            f"{shape}."
        )
    keep = torch.from_numpy(np.array(masks[name]))
    if keep.dtype != torch.bool or tuple(keep.shape) != shape:
        raise ValueError(
            f"masks[{name!r}] of {keep.dtype} and shape {tuple(keep.shape)} is not allowed: it "
            f"must be bool and of shape {shape}."
        )
    return keep


def _as_numpy(value: torch.Tensor) -> np.ndarray:
    """A copy; NumPy has no bfloat16, and float32 holds it exactly."""
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()


def _caller() -> str:
    """The file and line, outside of PyTorch and of this file, that called the site."""
    frame = sys._getframe(2)
    library = Path(torch.__file__).parent
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and library not in path.parents:
            break
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
