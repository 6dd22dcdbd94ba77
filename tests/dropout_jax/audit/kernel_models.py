"""A kernel and a foreign call that take a seed, and the case of a step that calls them."""

import jax
import jax.numpy as jnp
from audit_cases import Case, X, at_steps
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

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


def step_case(step, code="", about="", **kwargs):
    """The case of a training step of data and key."""
    return Case(step, lambda: {"train_step": step, "args_at": at_steps(X)}, code, about, **kwargs)


def evaluation_case(step, code="", about="", **kwargs):
    """The case of an evaluation step of data and key."""
    return Case(step, lambda: {"eval_step": step, "args_at": at_steps(X)}, code, about, **kwargs)
