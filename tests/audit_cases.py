"""Small data and the marked lines of the faulty models that the auditor must find."""

import inspect

import jax
import jax.numpy as jnp

KEY = jax.random.key(20)
X = jnp.linspace(-1, 1, 16 * 64).reshape(16, 64)
WEIGHTS = jnp.eye(64) + 0.01


def at_steps(*args):
    """Arguments of a step: these, and a key of its own for each step."""
    return lambda step: (*args, jax.random.fold_in(KEY, step))


def drop(key, x, rate=0.25):
    """Correct dropout in plain JAX."""
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def marked_lines(model, code):
    """Line numbers, in its file, of the lines of a model with the comment `# D05`."""
    lines, first = inspect.getsourcelines(model)
    return {first + n for n, line in enumerate(lines) if line.rstrip().endswith(f"# {code}")}


def assert_reported(findings, model, code):
    """The code is found at the marked line, and no other fault is accused but in its wake."""
    expected = [finding for finding in findings if finding.code == code]
    assert expected, f"no {code} in {[str(finding) for finding in findings]}"
    (marked,) = marked_lines(model, code)
    for finding in expected:
        lines = [location.line for location in (finding.location, *finding.callers)]
        assert marked in lines, f"line {marked} is not in {finding}"
    wake = {code} | {"D15": {"D04"}, "D02": {"D01"}}.get(code, set())
    accused = {finding.code for finding in findings if finding.severity != "note"}
    assert accused <= wake, f"also {accused - wake}"
