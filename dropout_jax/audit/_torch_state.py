"""Keep the state of a PyTorch model, its gradients and the generators, and put it back."""

from __future__ import annotations

import contextlib
import copy
import random
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

_REGISTERED = ("_parameters", "_buffers")
_CONTAINERS = (dict, list, set, deque)


@contextlib.contextmanager
def keep_state(model: nn.Module) -> Iterator[None]:
    """Put back, at the end, what running a model changes.

    That is: its parameters, gradients, buffers and training flags, the attributes of its modules
    and the generators among them, and the generators of PyTorch, NumPy and Python.
    """
    modules = [_Module(module) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with contextlib.ExitStack() as stack:
        for kind in device_types(model):
            count = getattr(torch, kind).device_count()
            stack.enter_context(torch.random.fork_rng(range(count), device_type=kind))
        stack.enter_context(torch.random.fork_rng([]))
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for module in modules:
                module.restore()
            for parameter, gradient in gradients:
                parameter.grad = gradient
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def device_types(model: nn.Module) -> set[str]:
    """Return the types of the devices whose generators a run may move."""
    tensors = [*model.parameters(), *model.buffers()]
    kinds = {tensor.device.type for tensor in tensors} - {"cpu", "meta"}
    return kinds | ({"cuda"} if torch.cuda.is_initialized() else set())


def seed_generators(model: nn.Module, seed: int) -> None:
    """Seed the generators that a run of a model may draw from, and no other."""
    torch.default_generator.manual_seed(seed)
    for kind in device_types(model):
        library = getattr(torch, kind)
        getattr(library, "manual_seed_all", library.manual_seed)(seed)


class _Module:
    """What a module holds: its attributes, one level of containers, tensors and generators."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._attributes = module, dict(vars(module))
        values = list(self._attributes.values())
        self._containers = [
            (value, copy.copy(value)) for value in values if isinstance(value, _CONTAINERS)
        ]
        values += list_module_tensors(module)
        self._tensors = [
            (value, value.detach().clone()) for value in values if isinstance(value, torch.Tensor)
        ]
        self._generators = [
            (value, value.get_state()) for value in values if isinstance(value, torch.Generator)
        ]

    def restore(self) -> None:
        """Put it all back."""
        vars(self._module).clear()
        vars(self._module).update(self._attributes)
        for container, kept in self._containers:
            _refill(container, kept)
        for generator, state in self._generators:
            generator.set_state(state)
        with torch.no_grad():
            for tensor, kept in self._tensors:
                if not torch.equal(tensor, kept):
                    tensor.detach().copy_(kept)


def _refill(container: Any, kept: Any) -> None:
    """Give a container, which others may hold too, what it had."""
    container.clear()
    (container.update if isinstance(container, dict | set) else container.extend)(kept)


def list_module_tensors(module: nn.Module) -> list[torch.Tensor]:
    """Return the tensors that a module itself holds: parameters, buffers and attributes."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple | dict) and name not in _REGISTERED:
            values = value.values() if isinstance(value, dict) else value
            tensors += [each for each in values if isinstance(each, torch.Tensor)]
    return tensors


def copy_tensors(batch: Any) -> Any:
    """Return a batch whose tensors are copies: a model may change them in place."""
    if isinstance(batch, torch.Tensor):
        return batch.detach().clone().requires_grad_(batch.requires_grad)
    if isinstance(batch, Mapping):
        return {name: copy_tensors(value) for name, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(copy_tensors(value) for value in batch)
    return batch
