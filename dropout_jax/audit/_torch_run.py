"""Run a PyTorch model once, in training or in evaluation, and record what is random."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from dropout_jax import _validation
from dropout_jax.audit._locations import Location
from dropout_jax.audit._record import OpaqueCall, Record
from dropout_jax.audit._torch_frames import (
    Origin,
    clean_path,
    find_origin,
    locate_forward,
    name_modules,
)
from dropout_jax.audit._torch_record import build_record
from dropout_jax.audit._torch_state import copy_tensors, keep_state
from dropout_jax.audit._torch_watch import BackwardPass, Watch

SEED = 0x5EED0FD20B007  # of the first step; no program has it


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a model.

    Args:
      record: of its random decisions.
      seeds: the lines of the user's code that seed a generator.
      compiled: the lines where torch.compile would have taken over.
      called: the paths of the modules that were called.
      noisy: the paths of the modules that multiply data with noise, or add it.
      padding: the sites whose data has to do with the padding, by their number.
    """

    record: Record
    seeds: tuple[Origin, ...]
    compiled: tuple[Origin, ...]
    called: frozenset[str]
    noisy: frozenset[str]
    padding: Mapping[int, str]


class Runner:
    """Runs one model, again and again.

    Args:
      model: the model.
      batch: a tensor, a tuple of arguments or a mapping of arguments by name.
      loss: from the output to a number; None is the sum of all numbers of the output.
      padding: where the padding of the batch is, or None.
    """

    def __init__(
        self,
        model: Any,
        batch: Any,
        loss: Callable[[Any], Any] | None,
        padding: Any = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            remedy = "Pass the model itself."
            _validation.fail(TypeError, "model", model, "a torch.nn.Module", remedy)
        self.model, self._batch, self._loss = model, batch, loss
        mask = None if padding is None else np.asarray(torch.as_tensor(padding).cpu())
        if mask is not None and mask.dtype != np.bool_:
            remedy = "Pass True where the batch has padding: tokens == padding_id."
            _validation.fail(TypeError, "padding", padding, "an array of booleans", remedy)
        self._watch = Watch(model, _END, mask)

    def train(
        self, number: int = 0, *, backward: bool = True, masks: bool = False, seeded: bool = False
    ) -> Run:
        """Run a training step: the forward pass, and the backward pass."""
        self.model.train()
        return self._run(number, backward=backward, masks=masks, seeded=seeded)

    def evaluate(self) -> Run:
        """Run the model in evaluation mode, without gradients."""
        self.model.eval()
        with torch.no_grad():
            return self._run(0, backward=False)

    def resume(self, seed: Callable[[int], Any], steps: int) -> tuple[list[Run], dict[int, Run]]:
        """Run the steps of a run that is seeded at step 0, and those that a resume begins with."""
        with keep_state(self.model):
            seed(0)
            runs = [self.train(number, seeded=True) for number in range(steps)]
        resumed = {}
        for number in range(1, steps):
            with keep_state(self.model):
                seed(number)
                resumed[number] = self.train(number, seeded=True)
        return runs, resumed

    def _run(
        self,
        number: int,
        *,
        backward: bool,
        masks: bool = False,
        seeded: bool = False,
    ) -> Run:
        """Run the model; where a generator was seeded, once more to see which line it was."""
        watch, called, before = self._watch, set(), _numpy_state()
        watch.begin(self.model, None if seeded else SEED + number)
        with torch.compiler.set_stance("force_eager"), _note_calls(self.model, called):
            with watch, BackwardPass(watch):
                _run_model(self.model, self._batch, self._loss, backward=backward)
            opaque = ["numpy.random"] if _numpy_state() != before else []
            has_seeds = (watch.is_seeded and not seeded) or watch.has_other_generator
            seeds = self._find_seeds() if has_seeds else []
        location = locate_forward(self.model, locate_call())
        calls = [
            OpaqueCall(location, (), name, {}, (), None, is_random=False, is_backward=False)
            for name in opaque
        ]
        record = build_record(watch.decisions, watch.draws, calls, masks=masks)
        applied = [decision for decision in watch.decisions if decision.applications]
        forward = [decision for decision in applied if not decision.is_backward]
        padding = {
            n: decision.applications[0].padding
            for n, decision in enumerate(forward)
            if decision.applications[0].padding
        }
        called |= {decision.origin.module for decision in forward}
        noisy = {draw.origin.module for draw in watch.draws if draw.use != "other"}
        origins = tuple(seeds), tuple(watch.compiled)
        return Run(record, *origins, frozenset(called), frozenset(noisy), padding)

    def _find_seeds(self) -> list[Origin]:
        """Run the model again, and return the lines of the user's code that seed a generator."""
        seeds: list[Origin] = []
        names = name_modules(self.model)

        def note(frame: FrameType, event: str, function: Any) -> None:
            if event == "c_call" and getattr(function, "__name__", "") == "manual_seed":
                origin = find_origin(names, _END, frame)
                if not any("checkpoint" in name for name in origin.library):
                    seeds.append(origin)

        before = sys.getprofile()
        with keep_state(self.model):
            sys.setprofile(note)
            try:
                _run_model(self.model, self._batch, self._loss, backward=False)
            finally:
                sys.setprofile(before)
        return seeds


def _numpy_state() -> tuple:
    """Return the state of NumPy's generator, of which PyTorch does not know."""
    state: Any = np.random.get_state()
    return state[1].tobytes(), state[2]


@contextlib.contextmanager
def _note_calls(model: nn.Module, called: set[str]) -> Iterator[None]:
    """Note the paths of the modules that are called."""
    handles = [
        module.register_forward_pre_hook(
            lambda _, __, path=path: called.add(path)  # a hook that returns None changes nothing
        )
        for path, module in ((clean_path(path), each) for path, each in model.named_modules())
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run_model(
    model: nn.Module, batch: Any, loss: Callable[[Any], Any] | None, *, backward: bool
) -> None:
    """Run the model, the loss and the backward pass. The stack of the model's lines ends here."""
    batch = copy_tensors(batch)
    if isinstance(batch, Mapping):
        output = model(**batch)
    else:
        output = model(*batch) if isinstance(batch, tuple) else model(batch)
    total = loss(output) if loss is not None else sum_numbers(output) if backward else None
    if backward and isinstance(total, torch.Tensor) and total.requires_grad:
        total.sum().backward()


_END = inspect.unwrap(_run_model).__code__  # of the stack of a model's lines


def sum_numbers(output: Any) -> Any:
    """Return the sum of all real numbers of an output that have gradients."""
    if isinstance(output, torch.Tensor):
        has_gradient = output.requires_grad and output.is_floating_point()
        return output.float().sum() if has_gradient else 0
    if isinstance(output, Mapping):
        output = tuple(output.values())
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        output = tuple(vars(output).values())
    return sum(map(sum_numbers, output)) if isinstance(output, list | tuple) else 0


def locate_call() -> Location:
    """Return the line of the user's code that called the auditor."""
    return find_origin({}, inspect.unwrap(locate_call).__code__).location


def check_steps(steps: int) -> None:
    """Refuse a number of steps that compares nothing."""
    if not isinstance(steps, int) or steps < 2:
        remedy = "Masks are compared between steps: pass steps=3."
        _validation.fail(ValueError, "steps", steps, "an integer, at least 2", remedy)
