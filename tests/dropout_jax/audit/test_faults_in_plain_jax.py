"""Faults of training steps in plain JAX: each is found, with its code and its line."""

import functools

import jax
import jax.numpy as jnp
import pytest
from audit_cases import KEY, WEIGHTS, X, assert_reported, at_steps, drop

from dropout_jax import audit


def loss_of(forward):
    """The gradient step of a forward pass from weights, data and key."""

    def step(weights, x, key):
        return jax.grad(lambda weights: (forward(weights, x, key) ** 2).sum())(weights)

    return step


def seed_in_step(weights, x, key):
    return drop(jax.random.key(0), x @ weights)  # D15


def key_of_module(weights, x, key):
    return drop(KEY, x @ weights)  # D04


def key_without_step(weights, x, key):
    h = jnp.tanh(x @ weights)
    return h * jax.random.bernoulli(jax.random.fold_in(KEY, 3), 0.75, h.shape) / 0.75  # D04


def one_key_for_layers(weights, x, key):
    for _ in range(3):
        x = jnp.tanh(drop(key, x @ weights))  # D05
    return x


def one_key_in_scan(weights, x, key):
    def layer(x, _):
        return jnp.tanh(drop(key, x @ weights)), None  # D05

    return jax.lax.scan(layer, x, None, length=3)[0]


def one_key_for_two_shapes(weights, x, key):
    h = drop(key, x @ weights)
    wide = jnp.concatenate([h, jnp.tanh(h)], axis=1)
    return drop(key, wide, 0.5)  # D05


def one_mask_for_layers(weights, x, key):
    mask = jax.random.bernoulli(key, 0.75, x.shape)  # D05
    for _ in range(3):
        x = jnp.tanh(x @ weights) * mask / 0.75
    return x


def one_mask_in_scan(weights, x, key):
    mask = jax.random.bernoulli(key, 0.75, x.shape)  # D05

    def layer(x, _):
        return jnp.where(mask, jnp.tanh(x @ weights) / 0.75, 0), None

    return jax.lax.scan(layer, x, None, length=3)[0]


def one_key_in_vmap(weights, x, key):
    def row(x):
        return drop(key, x @ weights)  # D06

    return jax.vmap(row)(x)


def equal_keys_in_vmap(weights, x, key):
    keys = jnp.stack([key] * len(x))
    return jax.vmap(drop)(keys, x @ weights)  # D06


def mask_of_one_row(weights, x, key):
    h = x @ weights
    mask = jax.random.bernoulli(key, 0.75, (1, h.shape[1]))  # D06
    return jnp.where(mask, h / 0.75, 0)


def one_mask_for_heads(weights, x, key):
    heads = jax.nn.softmax(jnp.einsum("thd,shd->hts", *[(x @ weights).reshape(16, 4, 16)] * 2))
    mask = jax.random.bernoulli(key, 0.75, heads.shape[1:])  # D06
    return jnp.where(mask, heads / 0.75, 0)


@jax.custom_vjp
def _own_gradient(x, key):
    return drop(key, x)


def _own_backward(key, gradient):
    return drop(jax.random.fold_in(key, 1), gradient), None


_own_gradient.defvjp(lambda x, key: (drop(key, x), key), _own_backward)


def other_mask_in_backward(weights, x, key):
    return _own_gradient(jnp.tanh(x @ weights), key)  # D07


def no_scale(weights, x, key):
    h = x @ weights
    return jnp.where(jax.random.bernoulli(key, 0.75, h.shape), h, 0)  # D10


def scale_by_rate(weights, x, key):
    h = x @ weights
    return jnp.where(jax.random.bernoulli(key, 0.75, h.shape), h / 0.25, 0)  # D10


def multiplied_by_kept(weights, x, key):
    h = x @ weights
    return h * jax.random.bernoulli(key, 0.75, h.shape) * 0.75  # D10


def scaled_twice(weights, x, key):
    h = x @ weights
    mask = jax.random.bernoulli(key, 0.75, h.shape) / 0.75  # D10
    return h * mask / 0.75


def scaled_in_and_out(weights, x, key):
    mask = jax.random.bernoulli(key, 0.75, x.shape)  # D10
    h = jnp.where(mask, x / 0.75, 0)
    return jnp.tanh(h / 0.75) @ weights


def numbers_of_bfloat16(weights, x, key):
    h = x @ weights
    numbers = jax.random.uniform(key, h.shape, jnp.bfloat16)
    return jnp.where(numbers < 0.9, h / 0.9, 0)  # D11


def eight_bits(weights, x, key):
    h = x @ weights
    return jnp.where(jax.random.bits(key, h.shape, jnp.uint8) < 230, h / 0.9, 0)  # D11


FAULTS = [
    (seed_in_step, "D15"),
    (key_of_module, "D04"),
    (key_without_step, "D04"),
    (one_key_for_layers, "D05"),
    (one_key_in_scan, "D05"),
    (one_key_for_two_shapes, "D05"),
    (one_mask_for_layers, "D05"),
    (one_mask_in_scan, "D05"),
    (one_key_in_vmap, "D06"),
    (equal_keys_in_vmap, "D06"),
    (mask_of_one_row, "D06"),
    (one_mask_for_heads, "D06"),
    (no_scale, "D10"),
    (scale_by_rate, "D10"),
    (multiplied_by_kept, "D10"),
    (scaled_twice, "D10"),
    (scaled_in_and_out, "D10"),
    (numbers_of_bfloat16, "D11"),
    (eight_bits, "D11"),
]


@pytest.mark.parametrize(
    ("model", "code"), FAULTS, ids=lambda value: getattr(value, "__name__", value)
)
def test_fault_is_found_at_its_line(model, code):
    findings = audit.check(loss_of(model), args_at=at_steps(WEIGHTS, X))
    assert_reported(findings, model, code)


def test_other_mask_in_the_backward_pass():
    findings = audit.check(loss_of(other_mask_in_backward), args_at=at_steps(WEIGHTS, X))
    assert_reported(findings, other_mask_in_backward, "D07")


def test_dropout_that_is_never_on():
    def train_step(weights, x, key):  # D02
        return drop(key, x @ weights) if key is None else x @ weights

    findings = audit.check(train_step, args_at=at_steps(WEIGHTS, X))
    assert_reported(findings, train_step, "D02")


def test_dropout_that_evaluation_leaves_on():
    def evaluate(weights, x, key):
        return drop(key, x @ weights)  # D03

    findings = audit.check(loss_of(evaluate), evaluate, at_steps(WEIGHTS, X))
    assert_reported(findings, evaluate, "D03")


def model_with_rate(attention_rate, mlp_rate, weights, x, key):
    first, second = jax.random.split(key)
    x = drop(first, x @ weights, 0.1)  # the attention's rate is not read
    return drop(second, x @ weights, mlp_rate)


def test_rate_that_nothing_reads():
    def set_attention(rate):  # D01
        return functools.partial(model_with_rate, rate, 0.1)

    def set_mlp(rate):
        return functools.partial(model_with_rate, 0.1, rate)

    rates = {"attention": set_attention, "mlp": set_mlp}
    step = functools.partial(model_with_rate, 0.1, 0.1)
    findings = audit.check(step, args_at=at_steps(WEIGHTS, X), rates=rates)
    assert_reported(findings, test_rate_that_nothing_reads, "D01")
    assert "attention" in findings[0].message


def test_rate_that_is_taken_for_its_complement():
    def step(rate, weights, x, key):
        h = x @ weights
        mask = jax.random.bernoulli(key, rate, h.shape)  # D09
        return jnp.where(mask, h / rate, 0)

    rates = {"rate": lambda rate: functools.partial(step, rate)}
    half = functools.partial(step, 0.5)
    findings = audit.check(half, args_at=at_steps(WEIGHTS, X), rates=rates)
    assert_reported(findings, step, "D09")


def test_masks_that_come_again():
    def step(weights, x, key):
        return drop(key, x @ weights)  # D14

    def args_at(number):
        return (WEIGHTS, X, jax.random.fold_in(KEY, number % 2))

    assert_reported(audit.check(step, args_at=args_at), step, "D14")


def test_masks_that_come_again_after_a_resume():
    def step(weights, x, key):
        return drop(key, x @ weights)  # D14

    good = at_steps(WEIGHTS, X)

    def replayed(number):
        return good(number - 1)

    assert_reported(audit.check(step, args_at=good, resumed_args_at=replayed), step, "D14")
    assert audit.check(step, args_at=good, resumed_args_at=good) == ()
