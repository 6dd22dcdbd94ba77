"""Generate text, one token at a time, with dropout off."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dropout_jax import fold
from minigpt.config import require_seed


def generate_ids(
    logits: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    prompt: np.ndarray,
    *,
    tokens: int,
    block_size: int,
    vocab_size: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Yield `tokens` ids that continue the prompt; the model reads the last block_size ids.

    Each id is drawn from softmax(logits / temperature), restricted to the `top_k` likeliest ids and
    to the fewest ids whose probabilities sum to at least `top_p`. Temperature 0 takes the likeliest
    id. The same seed, an integer from 0 to 2^32 - 1, gives the same ids.
    """
    _check_options(len(prompt), tokens, temperature, top_k, top_p)
    require_seed(seed)
    key = fold(jax.random.key(seed), "sample")
    window = np.zeros((1, block_size), np.int32)
    ids = list(map(int, prompt[-block_size:]))
    for i in range(tokens):
        window[0, : len(ids)] = ids  # attention is causal: what is to the right has no effect
        scores = logits(params, jnp.asarray(window))[0, len(ids) - 1, :vocab_size]
        ids.append(int(_sample_token(scores, fold(key, i), temperature, top_k, top_p)))
        yield ids[-1]
        ids = ids[-block_size:]


@functools.partial(jax.jit, static_argnames=("temperature", "top_k", "top_p"))
def _sample_token(
    scores: jax.Array,
    key: jax.Array | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> jax.Array:
    assert key is not None
    if temperature == 0:
        return jnp.argmax(scores)
    scores = (scores - scores.max()) / temperature
    if top_k is not None and top_k < scores.shape[0]:
        scores = jnp.where(scores < lax.top_k(scores, top_k)[0][-1], -jnp.inf, scores)
    if top_p is not None:
        ranked = jnp.sort(scores, descending=True)
        probability_of_likelier = jnp.cumsum(jax.nn.softmax(ranked)) - jax.nn.softmax(ranked)
        lowest = jnp.min(jnp.where(probability_of_likelier < top_p, ranked, jnp.inf))
        scores = jnp.where(scores < lowest, -jnp.inf, scores)
    return jax.random.categorical(key, scores)


def _check_options(
    prompt_length: int, tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    for is_valid, name, value, allowed in (
        (prompt_length > 0, "prompt", "", "at least one character"),
        (tokens >= 0, "tokens", tokens, "at least 0"),
        (temperature >= 0, "temperature", temperature, "at least 0 (0 takes the likeliest token)"),
        (top_k is None or top_k >= 1, "top_k", top_k, "at least 1"),
        (top_p is None or 0 < top_p <= 1, "top_p", top_p, "in (0, 1]"),
    ):
        if not is_valid:
            raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}.")
