"""The uncertainty of a model about every character of a text, by Monte Carlo dropout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dropout_jax import fold, mc_dropout, mutual_information, predictive_entropy
from minigpt.config import DropoutConfig, ModelConfig, require_seed
from minigpt.data import AnyTokenizer, Tokenizer
from minigpt.model import GPT
from minigpt.run import RunSpec

BATCH_PASSES = 8  # passes that are computed at the same time
_SHORTEST_WINDOW = 64

Logits = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""(params, tokens, key) to logits"""


class Uncertainty(NamedTuple):
    """The uncertainty of every token, or character, given the text before it, in nats.

    NaN for the first one, which has no text before it.
    """

    information: np.ndarray
    """mutual information: how much the passes disagree, which is what the model does not know"""
    entropy: np.ndarray
    """entropy of the mean prediction: the total uncertainty, including the text's own randomness"""
    surprise: np.ndarray
    """-log of the mean probability of the actual token; at most 87, for the smallest normal
    float32"""


def text_uncertainty(
    run: RunSpec, params: Any, text: str, *, dropout: float | None, passes: int, seed: int
) -> Uncertainty:
    """The uncertainty of a run's model about every character of a text.

    `dropout` replaces the rates that the run was trained with.
    """
    if not text:
        raise ValueError("text='' is not allowed: it must have at least one character.")
    rates = rates_for_passes(run.config.model.dropout, dropout)
    logits = stochastic_logits(run.config.model, rates, run.vocab_size, run.tokenizer.vocab_size)
    tokens = run.tokenizer.encode(text)
    uncertainty = token_uncertainty(
        logits,
        params,
        tokens,
        block_size=choose_window(run.config.model, len(tokens)),
        passes=passes,
        seed=seed,
    )
    return by_character(text, run.tokenizer, uncertainty)


def choose_window(model: ModelConfig, tokens: int) -> int:
    """The length of the windows: block_size; with rotary positions, less for a shorter text.

    (The length decides the masks: runs with learned positions keep the numbers that they had.)

    >>> model = ModelConfig(block_size=8192, positions="rotary")
    >>> choose_window(model, 5), choose_window(model, 1500), choose_window(model, 10_000)
    (64, 2048, 8192)
    """
    if model.positions == "learned":
        return model.block_size
    return min(model.block_size, max(_SHORTEST_WINDOW, 1 << (tokens - 1).bit_length()))


def rates_for_passes(trained: DropoutConfig, dropout: float | None) -> DropoutConfig:
    """The rates of training, or one rate for nanoGPT's four sites; an error if all are 0."""
    rates = trained if dropout is None else DropoutConfig.uniform(dropout)
    if any(rates.rates.values()):
        return rates
    reason = "the run was trained without dropout" if dropout is None else "this rate is 0"
    raise ValueError(
        f"dropout={dropout!r} is not allowed: Monte Carlo dropout needs a rate above 0, but "
        f"{reason}. Set a rate for the passes: --dropout 0.1."
    )


def token_uncertainty(
    logits: Logits,
    params: Any,
    tokens: np.ndarray,
    *,
    block_size: int,
    passes: int,
    seed: int = 0,
) -> Uncertainty:
    """The uncertainty of every token, from windows of block_size tokens that overlap by half.

    `logits(params, tokens, key)` returns the logits of the next token at every position, with
    dropout by the key: (1, block_size, vocab). Each token gets its numbers from the first window
    that predicts it, so every token after the first window has at least half a window of context.
    Window i uses mc_dropout with the key fold(key(seed), "uncertainty", "window", i). The same seed
    gives the same numbers.
    """
    if passes < 2:
        raise ValueError(
            f"passes={passes} is not allowed: it must be at least 2, because the passes are "
            "compared with each other."
        )
    require_seed(seed)
    key, stride = fold(jax.random.key(seed), "uncertainty"), max(block_size // 2, 1)
    values = np.full((len(Uncertainty._fields), len(tokens)), np.nan)
    next_token = 1  # the first token that no window has predicted yet
    for i, offset in enumerate(range(0, max(len(tokens) - 1, 0), stride)):
        if next_token == len(tokens):
            break
        window = np.zeros(block_size + 1, np.int32)
        part = tokens[offset : offset + block_size + 1]
        window[: len(part)] = part  # attention is causal: what is to the right has no effect
        inputs, targets = jnp.asarray(window[None, :-1]), jnp.asarray(window[None, 1:])
        window_key = fold(key, "window", i)
        window_values = np.array(
            _window_uncertainty(logits, params, inputs, targets, window_key, passes=passes)
        )
        end = offset + len(part)
        values[:, next_token:end] = window_values[:, 0, next_token - offset - 1 : len(part) - 1]
        next_token = end
    return Uncertainty(*values)


@functools.partial(jax.jit, static_argnames=("logits", "passes"))
def _window_uncertainty(
    logits: Logits,
    params: Any,
    inputs: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    *,
    passes: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The fields of Uncertainty, each of shape (1, block_size)."""

    def predict(key: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits(params, inputs, key))

    predictions = mc_dropout(predict, key, passes, batch_size=BATCH_PASSES)
    mean = predictions.mean(0)
    probability = jnp.take_along_axis(mean, targets[..., None], axis=-1)[..., 0]
    # Finite, because neither JSON nor a color scale can represent infinity.
    surprise = -jnp.log(jnp.maximum(probability, jnp.finfo(probability.dtype).tiny))
    return mutual_information(predictions), predictive_entropy(predictions), surprise


def by_character(text: str, tokenizer: AnyTokenizer, uncertainty: Uncertainty) -> Uncertainty:
    """Convert from tokens to characters: a character has the sum of its bytes' numbers.

    A token's number is divided evenly over its bytes, so the sum over a text stays the same. A
    token that ends where the one before it does has its number added to the next byte.
    """
    if isinstance(tokenizer, Tokenizer) and tokenizer.alphabet is not None:
        return uncertainty
    sizes = np.array([len(character.encode()) for character in text])
    first_bytes, ends = sizes.cumsum() - sizes, tokenizer.token_ends(text)
    starts = np.minimum(np.concatenate([[0], ends[:-1]]), sizes.sum() - 1)
    lengths = np.maximum(ends - starts, 1)
    # The bytes of each token, one after the other.
    position = np.repeat(starts - lengths.cumsum() + lengths, lengths) + np.arange(lengths.sum())

    def convert(values: np.ndarray) -> np.ndarray:
        by_byte = np.zeros(sizes.sum())
        np.add.at(by_byte, position, np.repeat(values / lengths, lengths))
        return np.add.reduceat(by_byte, first_bytes)

    return Uncertainty(*map(convert, uncertainty))


def stochastic_logits(
    config: ModelConfig, rates: DropoutConfig, rows: int, vocab_size: int
) -> Logits:
    """The logits function for token_uncertainty, of a GPT with `rows` rows in its token table."""
    config = dataclasses.replace(config, dropout=rates)
    graph = nnx.split(nnx.eval_shape(lambda: GPT(config, rows, rngs=nnx.Rngs(0))))[0]

    def logits(params: Any, tokens: jax.Array, key: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(tokens, key=key)[..., :vocab_size]

    return logits
