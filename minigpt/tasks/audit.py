"""Audit the dropout of a run: its training step and its evaluation step, with its own batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dropout_jax import audit
from minigpt.checkpoint import list_steps
from minigpt.config import Config
from minigpt.data import Answers, load_run_dataset
from minigpt.distributed import fit_mesh, make_mesh, use_mesh
from minigpt.run import RunSpec
from minigpt.tasks.classification import audit_arguments, load
from minigpt.training import (
    build_abstract_train_functions,
    build_train_functions,
    make_train_batch,
    scheduled_rates,
)

STEPS = 3  # that are compared
WITHOUT_DROPOUT = "Every dropout rate is 0: there is nothing to find in the training step."


def audit_run(
    run_dir: Path, warn: Callable[[str], object], *, with_rates: bool = False
) -> audit.Findings:
    """Find what is wrong with the dropout of a run or a classifier, by its settings and its text.

    The weights are the initial ones: no mask depends on them. `with_rates` sets each rate that is
    not 0 to other numbers too, and compares what is dropped.

    Raises:
      ValueError: there is no run, it is an imported model, or its text is another.
    """
    if not (run_dir / "config.toml").exists() and list_steps(run_dir):
        return _audit_classifier(run_dir, warn, with_rates=with_rates)
    run = RunSpec.load(run_dir)
    if run.config.imported_from:
        raise ValueError(
            f"run_dir={str(run_dir)!r} is not allowed: it is an imported model, which has no "
            "training steps. Name a run of minigpt train, finetune or classify."
        )
    dataset = load_run_dataset(run.config, run.inherited_tokenizer, run.chat_template)
    run.require_same_text(dataset.sha256, dataset.tokenizer)
    if not any(run.config.model.dropout.rates.values()):
        warn(WITHOUT_DROPOUT)
    config = fit_mesh(run.config, warn, "The audit runs on one device.")
    rates = rate_setters(config, run.vocab_size) if with_rates else {}
    return audit_steps(config, run.vocab_size, dataset.train, rates=rates)


def rate_setters(config: Config, vocab_size: int) -> dict[str, Callable[[float], Any]]:
    """By the name of each dropout rate that is not 0: from a rate to the step with that rate."""
    model, mesh = config.model, make_mesh(config)

    def set_rate(name: str, rate: float) -> Any:
        dropout = dataclasses.replace(model.dropout, **{name: rate})
        changed = dataclasses.replace(config, model=dataclasses.replace(model, dropout=dropout))
        steps = build_abstract_train_functions(changed, vocab_size, mesh.devices.flatten().tolist())
        return steps.train_step_at(config, first_step(config)).function

    rates = model.dropout.rates
    return {name: functools.partial(set_rate, name) for name, rate in rates.items() if rate}


def audit_steps(
    config: Config, vocab_size: int, tokens: np.ndarray | Answers, **options: Any
) -> audit.Findings:
    """Audit the steps of settings with a text or conversations.

    `options` are those of `dropout_jax.audit.check`. That training drops nothing is not a finding
    if every rate is 0.
    """
    steps = build_train_functions(config, vocab_size)
    first, key = first_step(config), jax.random.key(config.seed)

    def args_at(number: int) -> tuple[Any, ...]:
        batch = make_train_batch(steps.mesh, tokens, config, first + number)
        return steps.state._replace(step=jnp.int32(first + number)), batch, key

    train_step = steps.train_step_at(config, first).function
    eval_args = steps.state.params, args_at(0)[1]
    options = {"steps": STEPS, "eval_args": eval_args} | options
    with use_mesh(steps.mesh):
        findings = audit.check(train_step, steps.eval_step.function, args_at, **options)
    is_on = any(config.model.dropout.rates.values())
    return findings if is_on else _without_off_in_training(findings)


def _audit_classifier(
    folder: Path, warn: Callable[[str], object], *, with_rates: bool
) -> audit.Findings:
    classifier = load(folder)
    if with_rates:
        raise ValueError(
            f"rates=True is not allowed with {str(folder)!r}: it is a classifier, whose rates are "
            "arguments of its step. Leave out --rates."
        )
    findings = audit.check(**audit_arguments(classifier))
    if classifier.settings.dropout or classifier.settings.head_dropout:
        return findings
    warn(WITHOUT_DROPOUT)
    return _without_off_in_training(findings)


def _without_off_in_training(findings: audit.Findings) -> audit.Findings:
    others = [finding for finding in findings if finding.code != "D02"]
    return audit.Findings(others, training=findings.training, evaluation=findings.evaluation)


def first_step(config: Config) -> int:
    """The first or one of the last steps, from 0: where a schedule of rates drops more."""
    last = max(config.steps - STEPS, 0)
    return max((0, last), key=lambda step: sum(map(float, scheduled_rates(config, step).values())))
