"""The cases of the auditor: a model, what `check` is asked of it, and what it must say."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dropout_jax import audit

KEY = jax.random.key(20)
X = jnp.linspace(-1, 1, 16 * 64).reshape(16, 64)
TOKENS = X.reshape(2, 8, 64)
WEIGHTS = jnp.eye(64) + 0.01
# What a fault brings with it: a constant key is one mask for all steps, and for all rows of a vmap.
WAKE = {"D15": {"D04", "D06"}, "D02": {"D01"}}


@dataclasses.dataclass(frozen=True)
class Case:
    """A faulty or a correct model.

    Args:
      model: the function or class whose source has the faulty line, with the comment `# D05`.
      arguments: what `audit.check` is called with: a function, as models take time to build.
      code: of the fault; "" for a correct model.
      about: what is wrong, in a few words.
      name: of the case, if not that of the model.
      is_quick: whether it belongs to the tests that run by default.
      is_missed: whether the auditor is known to miss it, for a reason in docs/audit.md's limits.
    """

    model: Any
    arguments: Callable[[], dict[str, Any]]
    code: str = ""
    about: str = ""
    name: str = ""
    is_quick: bool = False
    is_missed: bool = False

    def __str__(self):
        return self.name or self.model.__name__


def at_steps(*args):
    """Arguments of a step: these, and a key of its own for each step."""
    return lambda step: (*args, jax.random.fold_in(KEY, step))


def drop(key, x, rate=0.25):
    """Correct dropout in plain JAX."""
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def training_step(forward):
    """A jitted step that returns a loss and its gradient."""

    @jax.jit
    def step(weights, x, key):
        def loss(weights):
            return (forward(weights, x, key) ** 2).sum()

        return jax.value_and_grad(loss)(weights)

    return step


def marked_lines(model, code):
    """Line numbers, in its file, of the lines of a model with the comment `# D05`."""
    lines, first = inspect.getsourcelines(model)
    return {first + n for n, line in enumerate(lines) if line.rstrip().endswith(f"# {code}")}


def accused(findings):
    """The text of each finding that is more than a note."""
    return [str(finding) for finding in findings if finding.severity != "note"]


def judge(case):
    """What the auditor makes of a case: "found", "missed", "not accused" or what it accuses."""
    findings = audit.check(**case.arguments())
    wake = {case.code} | WAKE.get(case.code, set())
    codes = {finding.code for finding in findings if finding.severity != "note"} - wake
    false_alarm = f"accused of {', '.join(sorted(codes))}" if codes else ""
    if not case.code:
        return false_alarm or "not accused"
    is_found = any(is_at_mark(finding, case) for finding in findings)
    verdict = "found" if is_found else "missed"
    return f"{verdict}, {false_alarm}" if codes else verdict


def is_at_mark(finding, case):
    """Whether a finding has the code of a case, at the line that is marked with it."""
    lines = [location.line for location in (finding.location, *finding.callers)]
    return finding.code == case.code and bool(marked_lines(case.model, case.code) & {*lines})
