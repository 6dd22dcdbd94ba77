"""Faulty models of padded sequences."""

import jax
import jax.numpy as jnp
from audit_cases import drop

from padding_models import LENGTHS, PADDED, VALID, losses_of, padded


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


def replaced_tokens(weights, tokens, key):
    is_replaced = jax.random.bernoulli(key, 0.15, tokens.shape)  # D12
    return (weights[jnp.where(is_replaced, 6, tokens)] ** 2).sum()


def losses_dropped_before_their_mask(weights, tokens, valid, key):
    losses = drop(key, losses_of(weights, tokens))  # D12
    return (losses * valid).sum() / valid.sum()


CASES = [
    padded(
        losses_dropped_before_their_mask,
        PADDED,
        VALID,
        code="D12",
        about="losses, before their mask",
    ),
    padded(
        dropped_losses, PADDED, VALID, code="D12", about="losses, after their mask", is_quick=True
    ),
    padded(dropped_losses_of_lengths, PADDED, LENGTHS, code="D12", about="losses, by lengths"),
    padded(dropped_losses_of_labels, PADDED, LENGTHS, code="D12", about="losses, by labels"),
    padded(dropped_mask_of_losses, PADDED, VALID, code="D12", about="the mask of the losses"),
    padded(
        replaced_tokens, PADDED, code="D12", about="padding is replaced too", padding=["tokens"]
    ),
]
