"""`check`: what is wrong with the dropout of a training step and an evaluation step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dropout_jax.audit._across_devices import find_device_faults, find_process_faults
from dropout_jax.audit._build import build_record
from dropout_jax.audit._findings import Finding, Findings, Severity, sort_findings
from dropout_jax.audit._locations import locate_function
from dropout_jax.audit._many_runs import (
    find_collisions,
    find_dead_rate,
    find_off_in_training,
    find_on_in_evaluation,
    find_repeated_steps,
    find_replay_after_resume,
)
from dropout_jax.audit._one_run import Declared, check_one_run
from dropout_jax.audit._program import Program
from dropout_jax.audit._record import Record
from dropout_jax.audit._seeds import find_random_calls, find_seed_faults

Step = Callable[..., Any]
ArgsAt = Callable[[int], Sequence[Any]] | Sequence[Sequence[Any]]
RATES = (0.3, 0.6)  # that are set, to see what changes


def check(
    train_step: Step | None = None,
    eval_step: Step | None = None,
    args_at: ArgsAt = (),
    *,
    eval_args: Sequence[Any] | None = None,
    rates: Mapping[str, Callable[[float], Step]] | None = None,
    resumed_args_at: ArgsAt = (),
    args_of_process: ArgsAt = (),
    steps: int = 3,
    shared: Sequence[str] = (),
    unscaled: Sequence[str] = (),
    padding: Sequence[str] = (),
    mc_dropout: bool = False,
) -> Findings:
    """Find what is wrong with the dropout of a training step and of an evaluation step.

    The records of `trace` are compared across steps, rates, rows, heads, layers, devices, and
    training and evaluation:

    - D01 a rate changes nothing; D02 training drops nothing; D03 the evaluation drops;
    - D04 one mask at every step; D05 one mask in two layers or sites; D06 one decision for a whole
      axis; D07 the backward pass draws another mask; D08 devices or processes have different masks
      for the same data, or the same for different data; D09 a rate is not what was asked; D10 the
      scale is wrong, missing or twice; D11 few random bits round the rate; D12 terms of a masked
      loss are dropped, or padding is replaced; D13 the evaluation is random otherwise; D14 masks
      come again, such as after a resume; D15 a key is built from a number inside the step.

    Args:
      train_step: a function of arrays, as for `trace`.
      eval_step: another.
      args_at: the arguments of the training step: a function of the number of the step, from 0, or
        a tuple of arguments for each step.
      eval_args: the arguments of the evaluation step; None: those of step 0.
      rates: by name, a function from a rate to the training step with that rate.
      args_of_process: the arguments of the training step at one step, on each process that runs it
        with others: as `args_at`, with the number of the process in the place of the step.
      resumed_args_at: the arguments at the same steps in a run that is resumed there, from step 1.
      steps: how many steps are compared, where `args_at` is a function.
      shared: sites that share decisions and are meant to: parts of their location ("model.py:40", a
        function's name) or of their module's path. Sharing is then a note.
      unscaled: sites that are meant not to scale.
      padding: arguments that tell what is padding, such as "batch['mask']" or "tokens": what
        replaces tokens at random must depend on one of them.
      mc_dropout: whether dropout is meant to be on in evaluation.

    Returns:
      The findings, errors first: one of each code and line. Notes say what is meant and so. It is a
      tuple; its attributes `training` and `evaluation` are the records of the first step and of the
      evaluation.

    Raises:
      ValueError: a step has no arguments.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import audit, dropout
      >>> def step(x, key):
      ...     return dropout(x, 0.1, key=jax.random.key(0)).sum()  # the same mask at every step
      >>> findings = audit.check(step, args_at=lambda n: (jnp.ones((32, 32)), jax.random.key(n)))
      >>> [(finding.code, finding.location.line) for finding in findings]
      [('D04', 2), ('D15', 2)]
    """
    declared = Declared(tuple(shared), tuple(unscaled), tuple(padding))
    findings: list[Finding] = []
    training = evaluation = None
    if train_step is not None:
        arguments = _arguments_at(args_at, range(steps), "args_at")
        records = _record_steps(train_step, arguments)
        training = records[0]
        findings += find_off_in_training(list(records.values()), locate_function(train_step))
        findings += check_one_run(records[0], declared)
        for site in records[0].sites:
            findings += find_device_faults(site, declared)
        there = _arguments_at(args_of_process, range(2), "args_of_process", is_needed=False)
        findings += find_process_faults(_record_steps(train_step, there))
        findings += find_repeated_steps(list(records.values()))
        findings += find_collisions(list(records.values()))
        findings += find_seed_faults(list(records.values()))
        later = _arguments_at(resumed_args_at, range(1, steps), "resumed_args_at", is_needed=False)
        findings += find_replay_after_resume(records, _record_steps(train_step, later))
        findings += _check_rates(rates or {}, arguments)
    if eval_step is not None and not mc_dropout:
        args = eval_args
        if args is None:
            args = _arguments_at(args_at, range(1), "args_at")[0]
        evaluation = _record_steps(eval_step, {0: args})[0]
        findings += [*find_on_in_evaluation(evaluation), *find_random_calls(evaluation)]
    return Findings(sort_findings(findings), training=training, evaluation=evaluation)


def assert_no_findings(
    *args: Any,
    severity: Severity = "warning",
    allow: Sequence[str] = (),
    **kwargs: Any,
) -> None:
    """Raise AssertionError with the findings of `check`, if there are any: a test in one line.

    Args:
      *args: as those of `check`.
      severity: findings less severe than this are allowed.
      allow: codes that are allowed.
      **kwargs: as those of `check`.

    Raises:
      AssertionError: the findings, one a line.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import audit, dropout
      >>> def step(x, key):
      ...     return dropout(x, 0.1, key=key).sum()
      >>> audit.assert_no_findings(step, args_at=lambda n: (jnp.ones((8, 32)), jax.random.key(n)))
    """
    findings = [
        finding
        for finding in check(*args, **kwargs).at_least(severity)
        if finding.code not in allow
    ]
    if findings:
        raise AssertionError("\n".join(str(finding) for finding in findings))


def _arguments_at(
    args_at: ArgsAt, steps: range, name: str, *, is_needed: bool = True
) -> dict[int, Sequence[Any]]:
    """Return the arguments of each step, by its number."""
    if callable(args_at):
        return {step: args_at(step) for step in steps}
    arguments = dict(enumerate(args_at, start=steps.start))
    if not arguments and is_needed:
        raise ValueError(
            f"{name}={args_at!r} is not allowed: it must be a function from a step to its "
            "arguments, or a tuple of arguments for each step. Pass args_at=[(state, batch, key)]."
        )
    return arguments


def _record_steps(step: Step, arguments: Mapping[int, Sequence[Any]]) -> dict[int, Record]:
    """Record each step; a program that several steps have in common is compiled once."""
    compiled: list[Program] = []
    records = {}
    for number, args in arguments.items():
        program = Program(step, args, {})
        same = next((one for one in compiled if one.is_same_program(program)), None)
        if same is None:
            compiled.append(program)
        chosen = same or program
        names = program.arguments.names
        records[number] = build_record(chosen.graph, chosen.run(program), names)
    return records


def _check_rates(
    rates: Mapping[str, Callable[[float], Step]], arguments: Mapping[int, Sequence[Any]]
) -> Iterator[Finding]:
    """Set each rate to two numbers, and compare the first and the last step."""
    chosen = {number: arguments[number] for number in {min(arguments), max(arguments)}}
    for name, set_rate in rates.items():
        runs = [(rate, list(_record_steps(set_rate(rate), chosen).values())) for rate in RATES]
        yield from find_dead_rate(name, runs, locate_function(set_rate))
