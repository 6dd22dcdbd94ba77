"""D12: terms of a masked loss that are dropped, and padding that is replaced."""

import jax
import jax.numpy as jnp
import pytest
from audit_cases import X, assert_reported, at_steps, drop

from dropout_jax import audit

TOKENS = jnp.arange(16 * 32).reshape(16, 32) % 7
LENGTHS = jnp.arange(16) + 10
EMBEDDING = jnp.linspace(-1, 1, 7 * 64).reshape(7, 64)
PADDED = jnp.where(jnp.arange(32) < LENGTHS[:, None], TOKENS, 0)
VALID = (jnp.arange(32) < LENGTHS[:, None]).astype(jnp.float32)


def step_of(loss):
    return jax.jit(jax.value_and_grad(loss))


def check(loss, *args, **options):
    return audit.check(step_of(loss), args_at=at_steps(*args), **options)


def losses_of(weights, tokens):
    logits = weights[tokens] @ weights.T
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]


def dropped_losses(weights, tokens, valid, key):
    losses = losses_of(weights, tokens) * valid
    return drop(key, losses).sum() / valid.sum()  # D12


def dropped_losses_of_lengths(weights, tokens, lengths, key):
    is_valid = jnp.arange(tokens.shape[1]) < lengths[:, None]
    losses = jnp.where(is_valid, losses_of(weights, tokens), 0)
    return drop(key, losses).mean()  # D12


def dropped_losses_of_labels(weights, tokens, _, key):
    losses = losses_of(weights, tokens) * (tokens != 0)
    return drop(key, losses).sum(axis=1).mean()  # D12


def dropped_mask_of_losses(weights, tokens, valid, key):
    kept = drop(key, valid)  # D12
    return (losses_of(weights, tokens) * kept).sum() / valid.sum()


@pytest.mark.parametrize(
    ("loss", "mask"),
    [
        (dropped_losses, VALID),
        (dropped_losses_of_lengths, LENGTHS),
        (dropped_losses_of_labels, LENGTHS),
        (dropped_mask_of_losses, VALID),
    ],
)
def test_dropout_after_the_loss_mask_is_found(loss, mask):
    assert_reported(check(loss, EMBEDDING, PADDED, mask), loss, "D12")


def masked_loss_of_dropped_states(weights, tokens, valid, key):
    states = drop(key, weights[tokens] * valid[..., None])
    losses = -jax.nn.log_softmax(states @ weights.T)[..., 0]
    return (losses * valid).sum() / valid.sum()


def masked_attention(weights, tokens, valid, key):
    states = weights[tokens]
    scores = jnp.einsum("btd,bsd->bts", states, states)
    mixed = drop(key, jax.nn.softmax(jnp.where(valid[:, None] > 0, scores, -1e9)) * valid[:, None])
    return (jnp.einsum("bts,bsd->btd", mixed, states) ** 2).sum()


def dropped_states_of_a_masked_mean(weights, tokens, valid, key):
    states = drop(key, jnp.tanh(weights[tokens]))
    return ((states * valid[..., None]).sum(axis=1) ** 2).mean()


@pytest.mark.parametrize(
    "loss", [masked_loss_of_dropped_states, masked_attention, dropped_states_of_a_masked_mean]
)
def test_masked_states_are_not_accused(loss):
    findings = check(loss, EMBEDDING, PADDED, VALID, padding=["valid"])
    assert [str(finding) for finding in findings if finding.severity != "note"] == []


def replaced_tokens(weights, tokens, key):
    is_replaced = jax.random.bernoulli(key, 0.15, tokens.shape)  # D12
    return (weights[jnp.where(is_replaced, 6, tokens)] ** 2).sum()


def replaced_real_tokens(weights, tokens, key):
    is_replaced = jax.random.bernoulli(key, 0.15, tokens.shape) & (tokens != 0)
    return (weights[jnp.where(is_replaced, 6, tokens)] ** 2).sum()


def test_replaced_padding_is_found_where_padding_is_declared():
    findings = check(replaced_tokens, EMBEDDING, PADDED, padding=["tokens"])
    assert_reported(findings, replaced_tokens, "D12")
    assert check(replaced_tokens, EMBEDDING, PADDED) == ()
    assert check(replaced_real_tokens, EMBEDDING, PADDED, padding=["tokens"]) == ()


def test_toy_sum_of_dropped_data_is_no_loss():
    def loss(x, key):
        return drop(key, jax.nn.relu(x) * (x > 0)).sum()

    assert audit.check(loss, args_at=at_steps(X)) == ()
