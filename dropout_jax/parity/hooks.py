"""Set and record the masks of the dropout sites of a PyTorch model.

A site is an nn.Dropout, nn.Dropout1d, nn.Dropout2d or nn.Dropout3d of the model, in place or not.
Its name is its path among the modules with "/" for ".", such as "block/0/attn_out". A call of the
function, F.dropout (1d, 2d, 3d), in the forward of a module is a site too, named by that module:
"block/0/attn/F.dropout". A site that one forward pass of the model calls again has a name for each
call: "drop", "drop#2", "drop#3". A mask has the shape of the site's input; that of Dropout1d, 2d
and 3d has size 1 on every axis after the channels, (batch, channels, 1, 1).

Both functions add forward hooks and leave the code of the model unchanged; `remove()` on their
result removes the hooks. Dropout that no hook can reach is an error that names it: AlphaDropout,
the dropout inside MultiheadAttention, RNN, LSTM and GRU, a subclass with a forward of its own, a
scripted or compiled model, and, in the forward pass of the model, another function that drops
(scaled_dot_product_attention with dropout_p). A rate of 0 and evaluation mode drop nothing and are
always allowed. Numbers that a model draws with torch.bernoulli or torch.rand are not seen.

During a call PyTorch passes its functions to a `TorchFunctionMode`, which takes the place of the
dropout function. So given masks leave PyTorch's generator alone.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from dropout_jax import _validation

try:
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode
    from torch.utils.hooks import RemovableHandle
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "dropout_jax.parity.hooks needs PyTorch: pip install torch", name=missing.name
    ) from None

# The modules that are sites, and the function that each calls.
_SITE_FUNCTIONS: dict[type[nn.Module], Callable] = {
    nn.Dropout: functional.dropout,
    nn.Dropout1d: functional.dropout1d,
    nn.Dropout2d: functional.dropout2d,
    nn.Dropout3d: functional.dropout3d,
}
# The modules that drop where no hook can reach, and the attribute that is their rate.
_UNREACHABLE: dict[type[nn.Module], str] = {
    nn.AlphaDropout: "p",
    nn.FeatureAlphaDropout: "p",
    nn.MultiheadAttention: "dropout",
    nn.RNNBase: "dropout",
}
# The arguments of every function that drops, up to its rate and its switch.
_INPUT_P_TRAINING = ("input", "p", "training")
_FUNCTIONS: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys(_SITE_FUNCTIONS.values(), _INPUT_P_TRAINING),
    **dict.fromkeys(
        (functional.alpha_dropout, functional.feature_alpha_dropout), _INPUT_P_TRAINING
    ),
    **dict.fromkeys((torch.dropout, torch.dropout_, torch.native_dropout), _INPUT_P_TRAINING),
    **dict.fromkeys((torch.feature_dropout, torch.feature_dropout_), _INPUT_P_TRAINING),
    **dict.fromkeys((torch.alpha_dropout, torch.alpha_dropout_), _INPUT_P_TRAINING),
    torch.feature_alpha_dropout: _INPUT_P_TRAINING,
    torch.feature_alpha_dropout_: _INPUT_P_TRAINING,
    functional.scaled_dot_product_attention: ("query", "key", "value", "attn_mask", "dropout_p"),
    functional.multi_head_attention_forward: (*[""] * 10, "dropout_p"),
}


# A record calls a function twice: on ones, and on the input. Given masks below it count one call.
_IS_SECOND_CALL = ContextVar("_IS_SECOND_CALL", default=False)


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
      model: any module; see the docstring of this module for its sites.
      masks: a bool array (True is kept) for every site, by name. The hooks read it at each call, so
        it may change from step to step. (Activation checkpointing calls a site again in the
        backward pass: change its mask after that.)
      scale: the factor of what is kept; None is 1 / (1 - p), rounded as PyTorch on a CPU does.

    Returns:
      The hooks; `remove()` removes them.

    Raises:
      TypeError, ValueError: an argument, or a part of the model, with what is allowed; at a call, a
        mask is missing or does not fit, or the model drops outside its sites.

    Source: torch.overrides.TorchFunctionMode.

    Example:
      >>> import numpy as np, torch
      >>> from dropout_jax.parity import hooks
      >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5))
      >>> handles = hooks.give_masks(model, {"0": np.array([True, False])})
      >>> model(torch.ones(2))
      tensor([2., 0.])
    """
    _check_sites(model)
    if not isinstance(masks, Mapping):
        remedy = "Pass {'name of the site': mask}."
        _validation.fail(TypeError, "masks", masks, "a mapping from names to masks", remedy)
    if scale is not None:
        scale = _validation.check_positive(scale, "scale")
    for path, module in model.named_modules():
        hooks = module._forward_pre_hooks.values()
        if any(isinstance(getattr(hook, "args", [None])[0], _GivenMasks) for hook in hooks):
            allowed = f"without given masks, and {path.replace('.', '/') or 'itself'!r} has some"
            remedy = "Call remove() on the earlier hooks, or change the masks that they read."
            _validation.fail(ValueError, "model", type(model).__name__, allowed, remedy)
    return _hook_every_module(model, _GivenMasks(masks, scale))


def record(model: nn.Module, tape: MutableMapping[str, dict[str, Any]]) -> Hooks:
    """Record the input, the mask, the output and the line of code of every site that drops.

    Formula: the mask is True where the site's own function, from the same state of the generator,
    keeps ones. (So it is known where the input is 0 or NaN, too.)

    Args:
      model: any module; see the docstring of this module for its sites. `give_masks` may be called
        before or after.
      tape: the result, by the name of the site, in the order of the last forward pass: {"input",
        "mask", "output"} as NumPy arrays, and "where", the file and line that called the site. Each
        pass removes the records of the pass before it: append dict(tape) to a list to keep one.

    Returns:
      The hooks; `remove()` removes them.

    Raises:
      TypeError, ValueError: an argument, or a part of the model, with what is allowed; at a call,
        the model drops outside its sites.

    Source: torch.overrides.TorchFunctionMode.

    Example:
      >>> import torch
      >>> from dropout_jax.parity import hooks
      >>> model, tape = torch.nn.Sequential(torch.nn.Dropout(0.5)), {}
      >>> handles = hooks.record(model, tape)
      >>> y = model(torch.ones(3))
      >>> bool((tape["0"]["mask"] == (y != 0).numpy()).all())
      True
    """
    _check_sites(model)
    if not isinstance(tape, MutableMapping):
        _validation.fail(TypeError, "tape", tape, "a mapping that can be changed", "Pass {}.")
    return _hook_every_module(model, _Recorder(tape))


class _ForwardPass(TorchFunctionMode):
    """The forward pass of a model: the modules that are being called, and how often a site was."""

    def __init__(self) -> None:
        super().__init__()
        self._entered: list[tuple[nn.Module, str]] = []
        self._calls: Counter[str] = Counter()
        self._call_name = ""

    def __deepcopy__(self, memo: dict) -> _ForwardPass:
        """Return itself: the hooks of a copy of the model read the same masks."""
        return self

    def enter(self, name: str, module: nn.Module, args: tuple) -> None:
        """Begin the call of a module, a pre-hook of it; the name of the model itself is empty."""
        if not name:
            if self._entered:  # Ctrl-C ended the last pass, without its hooks
                self.end()
            self._calls.clear()
            self.begin()
        if _is_site(module):
            self._call_name = self._name_call(name)
        if not self._entered:
            self.__enter__()
        self._entered.append((module, name))

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        """End the call; a hook of the module, called after an exception too."""
        if self._entered and self._entered[-1][0] is module:
            self._entered.pop()
            if not self._entered:
                self.__exit__(None, None, None)

    def end(self) -> None:
        """End a forward pass at once."""
        self._entered.clear()
        self.__exit__(None, None, None)

    def begin(self) -> None:
        """Begin a forward pass of the whole model."""

    def drop(self, name: str, function: Callable, call: dict[str, Any]) -> torch.Tensor:
        """Return what the site returns, in training with a rate above 0."""
        raise NotImplementedError

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Take the place of the functions that drop; PyTorch calls it for each of its own."""
        kwargs = kwargs or {}
        if func not in _FUNCTIONS:
            return func(*args, **kwargs)
        call = dict(zip(_FUNCTIONS[func], args, strict=False)) | kwargs
        rate = call.get("dropout_p", 0.0) if "query" in call else call.setdefault("p", 0.5)
        if not rate or not call.get("training", True):
            return func(*args, **kwargs)
        if func not in _SITE_FUNCTIONS.values():
            _refuse_function(func)
        module, name = self._entered[-1]
        if _is_site(module):
            return self.drop(self._call_name, func, call)
        of_module = f"{name}/F.{func.__name__}" if name else f"F.{func.__name__}"
        return self.drop(self._name_call(of_module), func, call)

    def _name_call(self, name: str) -> str:
        """Number the calls of one pass: "drop", "drop#2"."""
        if not self._entered or self._entered[0][1]:  # called by itself, or in the backward pass
            if self._calls[name] > 1:
                _validation.fail(
                    ValueError,
                    "site",
                    name,
                    "called within the model's forward pass, for it was called more than once in "
                    "the last one, and its masks are told apart by the number of the call",
                    "Give each call an nn.Dropout of its own.",
                )
            return name
        if not _IS_SECOND_CALL.get():
            self._calls[name] += 1
        return name if self._calls[name] == 1 else f"{name}#{self._calls[name]}"


class _GivenMasks(_ForwardPass):
    """Apply the masks that the user gives."""

    def __init__(self, masks: Mapping[str, Any], scale: float | None) -> None:
        super().__init__()
        self._masks, self._scale = masks, scale

    def drop(self, name: str, function: Callable, call: dict[str, Any]) -> torch.Tensor:
        """Apply the mask of this call."""
        x, p = call["input"], call["p"]
        if not (x.is_floating_point() or x.is_complex()) or not 0 < p <= 1:
            return function(**call)  # PyTorch's own error
        keep = _check_mask(name, self._masks, _mask_shape(name, function, x))
        factor = self._scale
        if factor is None and p == 1:
            if keep.any():
                allowed = "False everywhere at a rate of 1, where 1 / (1 - p) does not exist"
                remedy = "Pass the factor of what it keeps: scale=1.0."
                _validation.fail(ValueError, f"masks[{name!r}]", keep, allowed, remedy)
            factor = 1.0
        scaled = x * (x.new_ones(()).div(1 - p) if factor is None else factor)
        y = scaled.masked_fill_(~keep.to(x.device), 0)  # in place: it has the strides of x
        return x.copy_(y) if call.get("inplace") else y


class _Recorder(_ForwardPass):
    """Record every call of a site."""

    def __init__(self, tape: MutableMapping[str, dict[str, Any]]) -> None:
        super().__init__()
        self._tape, self._written = tape, set()

    def begin(self) -> None:
        """Remove the records of the last pass."""
        for name in self._written:
            self._tape.pop(name, None)
        self._written.clear()

    def drop(self, name: str, function: Callable, call: dict[str, Any]) -> torch.Tensor:
        """Call the function on ones, for the mask, and on the input from the same state."""
        x = call["input"]
        shape = _mask_shape(name, function, x)
        device = x.device.type
        forked = {"devices": [], "device_type": "cuda"}
        if device != "cpu":
            forked = {"devices": [x.device], "device_type": device}
        with torch.random.fork_rng(**forked), torch.no_grad():
            ones = function(torch.ones_like(x), call["p"], True, False)
        mask = _to_numpy(ones != 0)[tuple(slice(size) for size in shape)]
        x_array = _to_numpy(x)
        token = _IS_SECOND_CALL.set(True)
        try:
            y = function(**call)
        finally:
            _IS_SECOND_CALL.reset(token)
        parts = {"input": x_array, "mask": mask, "output": _to_numpy(y), "where": _find_caller()}
        self._tape[name] = parts
        self._written.add(name)
        return y


def _hook_every_module(model: nn.Module, mode: _ForwardPass) -> Hooks:
    """Enter the mode around the model and its modules: masks first, the record above them."""
    is_lower = isinstance(mode, _GivenMasks)
    handles = []
    for path, module in model.named_modules():
        enter = functools.partial(_ForwardPass.enter, mode, path.replace(".", "/"))
        leave = functools.partial(_ForwardPass.leave, mode)
        handles += [
            module.register_forward_pre_hook(enter, prepend=is_lower),
            module.register_forward_hook(leave, prepend=not is_lower, always_call=True),
        ]
        check = functools.partial(_refuse_unreachable, path)
        handles += [module.register_forward_pre_hook(check)] if _rate_name(module) else []
    return Hooks(handles)


def _check_sites(model: nn.Module) -> None:
    """Refuse a model with dropout that cannot be reached, or with two sites of one name."""
    if not isinstance(model, nn.Module):
        _validation.fail(TypeError, "model", model, "a torch.nn.Module", "Pass the model itself.")
    names = set()
    for path, module in model.named_modules():
        _refuse_unreachable(path, module)
        name = path.replace(".", "/")
        if name in names:
            allowed = f"without two modules of one name, and it has two called {name!r}"
            remedy = "Rename the module that has a slash in its name."
            _validation.fail(ValueError, "model", type(model).__name__, allowed, remedy)
        names.add(name)
    own = (module for module in model.modules() if not type(module).__module__.startswith("torch."))
    if not any(True for _ in own) and not any(map(_is_site, model.modules())):
        allowed = "a model with nn.Dropout modules, or with modules that call F.dropout"
        raise ValueError(
            f"model={type(model).__name__} is not allowed: it must be {allowed}. Add an nn.Dropout."
        )


def _is_site(module: nn.Module) -> bool:
    return isinstance(module, tuple(_SITE_FUNCTIONS))


def _refuse_unreachable(path: str, module: nn.Module, args: tuple = ()) -> None:
    """Refuse a module that drops where no hook can reach; also a pre-hook of it."""
    kind, remedy = type(module).__name__, "Use an nn.Dropout."
    if isinstance(module, torch.jit.ScriptModule):
        remedy = "Pass the model as it was before torch.jit.script or torch.jit.trace."
    elif kind == "OptimizedModule":
        remedy = "Pass the model itself, and torch.compile it after that."
    elif _is_site(module):
        is_own = "forward" in vars(module) or not any(
            type(module).forward is site.forward for site in _SITE_FUNCTIONS
        )
        if not is_own:
            return
        remedy = "Use nn.Dropout itself, and do the rest in the module that calls it."
    else:
        rate_name = _rate_name(module)
        if not rate_name or not module.training or not getattr(module, rate_name):
            return
        kind += f", {rate_name}={getattr(module, rate_name)}"
        remedy = f"Set model.get_submodule({path!r}).{rate_name} = 0.0, or call its eval()."
    raise ValueError(
        f"model with {path or 'itself'!r} ({kind}) is not allowed: dropout must be in modules "
        f"whose masks can be given and seen, nn.Dropout, 1d, 2d or 3d. {remedy}"
    )


def _rate_name(module: nn.Module) -> str | None:
    """Return the attribute that is the rate of an unreachable module, or None for any other."""
    return next((name for kind, name in _UNREACHABLE.items() if isinstance(module, kind)), None)


def _refuse_function(function: Callable) -> None:
    """Refuse a function that drops in the forward pass outside the sites."""
    raise ValueError(
        f"{function.__name__}, called at {_find_caller()}, is not allowed: in training, dropout "
        "must be nn.Dropout, 1d, 2d or 3d or their functions, whose masks have a known shape. "
        "Use F.dropout there (transformers: attn_implementation='eager'), or a rate of 0."
    )


def _mask_shape(name: str, function: Callable, x: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a site's mask: of the input, or of its channels."""
    if x.layout != torch.strided or x.is_nested:
        allowed = "a dense tensor"
        remedy = "Convert it: x.to_dense(), or to_padded_tensor for a nested one."
        _validation.fail(TypeError, f"the input of {name!r}", x.layout, allowed, remedy)
    shape = tuple(x.shape)
    if function is functional.dropout or len(shape) < 2:
        return shape
    has_no_batch = (function, len(shape)) in ((functional.dropout1d, 2), (functional.dropout3d, 4))
    channels = 1 if has_no_batch else 2
    return shape[:channels] + (1,) * (len(shape) - channels)


def _check_mask(name: str, masks: Mapping[str, Any], shape: tuple[int, ...]) -> torch.Tensor:
    if name not in masks:
        raise ValueError(
            f"masks={list(masks)} is not allowed: it must have one for {name!r}, of shape "
            f"{shape}. Add masks[{name!r}]."
        )
    mask = masks[name]
    keep = mask.detach().cpu() if isinstance(mask, torch.Tensor) else _from_numpy(name, mask)
    if keep.dtype != torch.bool or tuple(keep.shape) != shape:
        is_bool = keep.dtype == torch.bool
        remedy = f"Draw it so: keep_mask(key, rate, {shape})." if is_bool else "Pass mask != 0."
        raise ValueError(
            f"masks[{name!r}] of {keep.dtype} and shape {tuple(keep.shape)} is not allowed: it "
            f"must be bool and of shape {shape}. {remedy}"
        )
    return keep


def _from_numpy(name: str, mask: Any) -> torch.Tensor:
    array = np.array(mask)  # JAX's arrays cannot be written to
    if array.dtype.kind not in "biuf":
        allowed, remedy = "a bool array, True is kept", "Pass mask != 0."
        _validation.fail(ValueError, f"masks[{name!r}]", mask, allowed, remedy)
    return torch.from_numpy(array)


def _to_numpy(value: torch.Tensor) -> np.ndarray:
    """Copy to NumPy, which has no bfloat16; float32 holds it exactly."""
    value = value.detach().cpu().resolve_conj().resolve_neg()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()


def _find_caller() -> str:
    """Find the file and line that called PyTorch, which called this module."""
    frame = sys._getframe(1)
    library = Path(torch.__file__).parent
    for is_torch in (False, True):
        while (library in Path(frame.f_code.co_filename).parents) == is_torch:
            if frame.f_back is None:
                break
            frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
