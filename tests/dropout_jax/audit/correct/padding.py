"""Correct models of padded sequences."""

import jax
import jax.numpy as jnp
from audit_cases import Case, X, at_steps, drop

from padding_models import PADDED, VALID, padded


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


def replaced_real_tokens(weights, tokens, key):
    is_replaced = jax.random.bernoulli(key, 0.15, tokens.shape) & (tokens != 0)
    return (weights[jnp.where(is_replaced, 6, tokens)] ** 2).sum()


def replaced_tokens(weights, tokens, key):
    is_replaced = jax.random.bernoulli(key, 0.15, tokens.shape)
    return (weights[jnp.where(is_replaced, 6, tokens)] ** 2).sum()


def sum_of_dropped_data(x, key):
    return drop(key, jax.nn.relu(x) * (x > 0)).sum()


CASES = [
    padded(masked_loss_of_dropped_states, PADDED, VALID, padding=["valid"], is_quick=True),
    padded(masked_attention, PADDED, VALID, padding=["valid"]),
    padded(dropped_states_of_a_masked_mean, PADDED, VALID, padding=["valid"]),
    padded(replaced_real_tokens, PADDED, padding=["tokens"]),
    padded(replaced_tokens, PADDED),
    Case(
        sum_of_dropped_data,
        lambda: {"train_step": sum_of_dropped_data, "args_at": at_steps(X)},
    ),
]
