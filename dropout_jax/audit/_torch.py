"""`torch` and `trace_torch`: what `check` and `trace` do, for a PyTorch model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from dropout_jax.audit._findings import Findings, sort_findings
from dropout_jax.audit._one_run import Declared
from dropout_jax.audit._record import Record


def torch(
    model: Any,
    batch: Any,
    *,
    loss: Callable[[Any], Any] | None = None,
    rates: Mapping[str, float] | None = None,
    resume: Callable[[int], Any] | None = None,
    padding: Any = None,
    steps: int = 3,
    shared: Sequence[str] = (),
    unscaled: Sequence[str] = (),
    mc_dropout: bool = False,
) -> Findings:
    """Find what is wrong with the dropout of a PyTorch model, in training and in evaluation.

    The model runs some steps in training mode, forward and backward, once in evaluation mode, and
    twice with other rates, and every operation that draws, decides or drops is followed. Its code
    is not changed. Afterwards its parameters, gradients, buffers, training flags and attributes
    are what they were, and so are the generators of PyTorch, NumPy and Python.

    - D01 a rate changes nothing, or nothing calls the layer; D02 training drops nothing; D03 the
      evaluation drops;
    - D04 one mask at every step; D05 one mask in two sites; D06 one decision for a whole axis; D07
      the backward pass draws another mask, as checkpoint(..., preserve_rng_state=False) does; D09
      a rate is not what was asked; D10 the scale is wrong, missing or twice; D11 few random bits
      round the rate; D12 terms of a masked loss are dropped, or padding is replaced; D13 the
      evaluation is random otherwise; D14 masks come again after a resume; D15 the forward pass
      seeds a generator.

    Args:
      model: an nn.Module.
      batch: its input: a tensor, a tuple of arguments or a mapping of arguments by name.
      loss: a function from the output to a number, for the backward pass; None is the sum of all
        numbers of the output.
      rates: the rate that is meant, by the path of a module or a part of it ("attn.drop").
      resume: what the training script does to the generators when it begins at a step, such as
        `lambda step: torch.manual_seed(0)`. It is called with 0, and with later steps.
      padding: where the batch has padding: booleans, (batch, time).
      steps: how many training steps are compared.
      shared: sites that share decisions and are meant to: parts of their location ("model.py:40", a
        function's name) or of their module's path. Sharing is then a note.
      unscaled: sites that are meant not to scale.
      mc_dropout: whether dropout is meant to be on in evaluation.

    Returns:
      The findings, errors first: one of each code and line. Notes say what is meant and so. Their
      attributes `training` and `evaluation` are the records of the first step and of evaluation.

    Raises:
      ModuleNotFoundError: PyTorch is not installed.
      TypeError, ValueError: an argument, with what is allowed.
      Whatever the model raises for such a batch.

    Limits: what torch.compile compiles runs uncompiled, and a note says so. A kernel that hides its
    mask (attention on a GPU) is a site with its rate only. What drops outside PyTorch is not seen.

    Example:
      >>> import torch
      >>> from dropout_jax import audit
      >>> class Model(torch.nn.Module):
      ...     def forward(self, x):
      ...         return torch.nn.functional.dropout(x, 0.1)  # in evaluation, too
      >>> findings = audit.torch(Model(), torch.ones(8, 32))
      >>> [(finding.code, finding.location.line) for finding in findings]
      [('D03', 3)]
    """
    _check_torch()
    from dropout_jax.audit import _torch_rates, _torch_rules, _torch_run, _torch_state
    from dropout_jax.audit._torch_frames import find_aliases, locate_forward

    runner = _torch_run.Runner(model, batch, loss, padding)
    _torch_run.check_steps(steps)
    caller = _torch_run.locate_call()
    declared = Declared(tuple(shared), tuple(unscaled))
    with _torch_state.keep_state(model):
        runs = [runner.train(number) for number in range(steps)]
        evaluation = runner.evaluate()
    location = locate_forward(model, caller)
    aliases = find_aliases(model)
    findings = list(
        _torch_rules.check_runs(runs, evaluation, declared, location, aliases, mc=mc_dropout)
    )
    findings += _torch_rates.check_rates(runner, runs, caller)
    findings += _torch_rates.check_asked_rates(model, rates or {}, runs, caller)
    if resume is not None:
        findings += _torch_rules.find_replay_after_resume(*runner.resume(resume, steps))
    training, evaluated = runs[0].record, evaluation.record
    return Findings(sort_findings(findings), training=training, evaluation=evaluated)


def trace_torch(
    model: Any, batch: Any, *, loss: Callable[[Any], Any] | None = None, masks: bool = False
) -> Record:
    """Run a training step of a PyTorch model and return a record of every random decision in it.

    Args:
      model: an nn.Module. Its code is not changed, and its state is put back.
      batch: as for `torch`.
      loss: as for `torch`.
      masks: True keeps the masks, in `Site.masks`; else only their numbers are kept.

    Returns:
      The sites, in the order of the forward pass, and what else is random.

    Raises:
      As `torch`.

    Example:
      >>> import torch
      >>> from dropout_jax import audit
      >>> record = audit.trace_torch(torch.nn.Sequential(torch.nn.Dropout(0.2)), torch.ones(64, 64))
      >>> [(site.module, site.probability, site.scale, site.shape) for site in record.sites]
      [('0', 0.8, 1.25, (64, 64))]
    """
    _check_torch()
    from dropout_jax.audit import _torch_run, _torch_state

    with _torch_state.keep_state(model):
        return _torch_run.Runner(model, batch, loss).train(masks=masks).record


def _check_torch() -> None:
    if find_spec("torch") is None:
        raise ModuleNotFoundError(
            "dropout_jax.audit.torch needs PyTorch: pip install torch", name="torch"
        )
