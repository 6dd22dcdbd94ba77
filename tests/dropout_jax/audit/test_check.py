"""What a user declares, and what the findings say of a model's parts."""

import functools

import jax
import jax.numpy as jnp
from audit_cases import WEIGHTS, X, accused, at_steps, drop, training_step

from bugs.plain_jax import fused_attention, no_scale
from correct.plain_jax import plain, variational
from dropout_jax import audit

check = functools.partial(audit.check, args_at=at_steps(WEIGHTS, X))


def test_monte_carlo_dropout_is_accused_where_it_is_not_declared():
    findings = check(training_step(plain), plain, mc_dropout=True)
    assert accused(findings) == []
    assert [finding.code for finding in check(training_step(plain), plain)] == ["D03"]


def test_declared_sharing_is_a_note():
    step = training_step(variational)
    assert {finding.severity for finding in check(step, shared=["variational"])} == {"note"}
    assert [finding.code for finding in check(step)] == ["D05"]


def test_declared_lack_of_scale_is_not_accused():
    step = training_step(no_scale)
    assert accused(check(step, unscaled=["no_scale"])) == []
    assert [finding.code for finding in check(step)] == ["D10"]


def test_kernel_that_says_that_it_drops_is_found_in_evaluation():
    def evaluate(weights, x, key):
        return fused_attention.bind(x @ weights, seed=42, dropout_rate=0.1)

    assert [finding.code for finding in check(None, evaluate)] == ["D03"]


def test_scale_that_is_rounded_is_a_note_with_its_number():
    def step(weights, x, key):
        return drop(key, (x @ weights).astype("bfloat16"), 0.1)

    (finding,) = check(step)
    assert (finding.code, finding.severity) == ("D11", "note")
    assert "+0.17%" in finding.message


def test_zero_of_bfloat16_is_a_zero():
    def step(weights, x, key):
        h = (x @ weights).astype("bfloat16")
        mask = jax.random.bernoulli(key, 0.75, h.shape[1:])
        return jax.lax.select(jnp.broadcast_to(mask, h.shape), h, jnp.zeros_like(h))

    assert [finding.code for finding in check(step)] == ["D06", "D10"]


def test_function_inside_jit_and_partial_is_located():
    def off_in_training(weights, x, key, rate):
        return x @ weights

    wrapped = functools.partial(jax.jit(functools.partial(off_in_training, rate=0.1)))
    (finding,) = check(wrapped)
    assert finding.location.line == off_in_training.__code__.co_firstlineno


def test_finding_prints_a_line():
    (finding,) = check(training_step(no_scale))
    text = str(finding)
    assert text.startswith("D10 error: ")
    assert "plain_jax.py" in text
    assert "\n" not in text
