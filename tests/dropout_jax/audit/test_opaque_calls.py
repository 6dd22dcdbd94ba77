"""Kernels and foreign calls: what their seeds and rates tell of masks that nobody sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audit_cases import KEY, X, assert_reported, at_steps
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dropout_jax import audit

LIKE_X = jax.ShapeDtypeStruct(X.shape, X.dtype)
foreign = jax.ffi.ffi_call("attention_with_dropout", LIKE_X)


def seed_of(key):
    return jax.random.bits(key, (1,), jnp.uint32).astype(jnp.int32)


def kernel(seed, x):
    def body(seed_ref, x_ref, out_ref):
        pltpu.prng_seed(seed_ref[0])
        bits = pltpu.prng_random_bits(x_ref.shape)
        out_ref[...] = jnp.where(bits > 0, x_ref[...], 0.0)

    return pl.pallas_call(body, out_shape=LIKE_X)(seed, x)


def static_seed(x, key):
    return foreign(x, seed=np.int64(42), dropout_rate=0.1).sum()  # D04


def seed_of_the_program(x, key):
    return kernel(jnp.array([42], jnp.int32), x).sum()  # D04


def seed_of_a_constant(x, key):
    return kernel(seed_of(jax.random.key(0)), x).sum()  # D04


def one_seed_for_two_calls(x, key):
    seed = seed_of(key)
    return kernel(seed, jnp.tanh(kernel(seed, x))).sum()  # D05


def one_seed_in_scan(x, key):
    def layer(x, _):
        return kernel(seed_of(key), x), None  # D05

    return jax.lax.scan(layer, x, None, length=3)[0].sum()


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (static_seed, "D04"),
        (seed_of_the_program, "D04"),
        (seed_of_a_constant, "D04"),
        (one_seed_for_two_calls, "D05"),
        (one_seed_in_scan, "D05"),
    ],
)
def test_fault_of_a_seed_is_found(step, code):
    findings = audit.check(step, args_at=at_steps(X))
    assert_reported(findings, step, code)


def own_seed(x, key):
    return kernel(seed_of(key), x).sum()


def own_seed_for_each_layer(x, key):
    def layer(x, key):
        return kernel(seed_of(key), x), None

    return jax.lax.scan(layer, x, jax.random.split(key, 3))[0].sum()


def seed_as_input_of_a_foreign_call(x, key):
    return foreign(x, seed_of(key), dropout_rate=0.1).sum()


def no_dropout(x, key):
    return foreign(x, dropout_rate=0.0).sum() + jax.random.normal(key, (2,)).sum()


@pytest.mark.parametrize(
    "step", [own_seed, own_seed_for_each_layer, seed_as_input_of_a_foreign_call]
)
def test_own_seeds_are_not_accused(step):
    assert audit.check(step, args_at=at_steps(X)) == ()


@pytest.mark.parametrize("step", [own_seed, seed_as_input_of_a_foreign_call])
def test_random_call_in_evaluation(step):
    findings = audit.check(eval_step=step, args_at=at_steps(X))
    assert {finding.code for finding in findings if finding.severity == "error"} == {"D03"}


def test_call_without_dropout_in_evaluation_is_not_accused():
    findings = audit.check(eval_step=functools.partial(no_dropout), args_at=at_steps(X))
    assert [finding.code for finding in findings if finding.severity == "error"] == []


def test_record_names_the_argument_of_the_seed():
    (call,) = audit.trace(own_seed, X, KEY).opaque
    assert (call.seed_arguments, call.is_random) == (("key",), True)
    assert str(call).endswith("seed of argument key")
