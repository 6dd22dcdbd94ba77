"""How unsure a model is of every character of a text, by Monte Carlo dropout."""

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
from minigpt.config import DropoutConfig, ModelConfig
from minigpt.data import Tokenizer
from minigpt.model import GPT
from minigpt.run import RunSpec

BATCH_PASSES = 8  # passes that are held in memory together


class Uncertainty(NamedTuple):
    """Of every token, or character, given those before it, in nats.

    NaN for the first, which nothing comes before.
    """

    information: np.ndarray
    """mutual information: how much the passes disagree, what the model does not know"""
    entropy: np.ndarray
    """of the passes' mean: all that is uncertain, the text's own chance with it"""
    surprise: np.ndarray
    """-log of the mean probability of the token that stands there; at most 87, of the least float32
    that is no subnormal"""


def text_uncertainty(
    run: RunSpec, params: Any, text: str, *, dropout: float | None, passes: int, seed: int
) -> Uncertainty:
    """Of every character of a text, by a run's model: `dropout` for the rates of its training."""
    if not text:
        raise ValueError("text='' is not allowed: it must have a character.")
    rates = rates_for_passes(run.config.model.dropout, dropout)
    logits = stochastic_logits(run.config.model, rates, run.vocab_size, run.tokenizer.vocab_size)
    size, tokens = run.config.model.block_size, run.tokenizer.encode(text)
    found = token_uncertainty(logits, params, tokens, block_size=size, passes=passes, seed=seed)
    return by_character(text, run.tokenizer, found)


def rates_for_passes(trained: DropoutConfig, dropout: float | None) -> DropoutConfig:
    """The rates that the run was trained with, or one for nanoGPT's four sites; never all 0."""
    rates = trained if dropout is None else DropoutConfig.uniform(dropout)
    if rates != DropoutConfig():
        return rates
    why = "the run was trained without dropout" if dropout is None else "every pass would be equal"
    raise ValueError(
        f"dropout={dropout!r} is not allowed: Monte Carlo dropout needs a rate above 0, and {why}. "
        "Give a rate for the passes: --dropout 0.1."
    )


def token_uncertainty(
    logits: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    tokens: np.ndarray,
    *,
    block_size: int,
    passes: int,
    seed: int = 0,
) -> Uncertainty:
    """Read the tokens in windows of block_size, each half over the one before.

    `logits(params, tokens, key)` are those of the next token at every position, with dropout by
    the key: (1, block_size, vocab). A window's numbers are taken where the one before has none, so
    every token but the text's first ones has at least half a window before it. Window i has the
    passes of mc_dropout with fold(key(seed), "uncertainty", "window", i). The same seed gives the
    same numbers.
    """
    if passes < 2:
        raise ValueError(f"passes={passes} is not allowed: it must be at least 2, to disagree.")
    key, stride = fold(jax.random.key(seed), "uncertainty"), max(block_size // 2, 1)
    found = np.full((len(Uncertainty._fields), len(tokens)), np.nan)
    new_from = 1  # the first token that no window has yet predicted
    for i, start in enumerate(range(0, max(len(tokens) - 1, 0), stride)):
        if new_from == len(tokens):
            break
        window = np.zeros(block_size + 1, np.int32)
        part = tokens[start : start + block_size + 1]
        window[: len(part)] = part  # what lies to the right is not seen: attention is causal
        given, following = jnp.asarray(window[None, :-1]), jnp.asarray(window[None, 1:])
        of_window = fold(key, "window", i)
        numbers = np.array(_of_window(logits, params, given, following, of_window, passes))
        end = start + len(part)
        found[:, new_from:end] = numbers[:, 0, new_from - start - 1 : len(part) - 1]
        new_from = end
    return Uncertainty(*found)


@functools.partial(jax.jit, static_argnames=("logits", "passes"))
def _of_window(logits, params, given, following, key, passes: int):
    """The fields of Uncertainty, each (1, block_size)."""

    def predict(key):
        return jax.nn.softmax(logits(params, given, key))

    predictions = mc_dropout(predict, key, passes, batch_size=BATCH_PASSES)
    mean = predictions.mean(0)
    right = jnp.take_along_axis(mean, following[..., None], axis=-1)[..., 0]
    # Not infinite, which neither JSON nor a scale of colours could hold.
    surprise = -jnp.log(jnp.maximum(right, jnp.finfo(right.dtype).tiny))
    return mutual_information(predictions), predictive_entropy(predictions), surprise


def by_character(text: str, tokenizer: Tokenizer, found: Uncertainty) -> Uncertainty:
    """From tokens to characters: one of several bytes has the sum of its bytes' numbers."""
    if tokenizer.alphabet is not None:
        return found
    sizes = np.array([len(character.encode()) for character in text])
    return Uncertainty(*(np.add.reduceat(each, sizes.cumsum() - sizes) for each in found))


def stochastic_logits(config: ModelConfig, rates: DropoutConfig, rows: int, vocab_size: int):
    """The logits that token_uncertainty asks for: of a GPT with `rows` rows in its token table."""
    config = dataclasses.replace(config, dropout=rates)
    graph = nnx.split(nnx.eval_shape(lambda: GPT(config, rows, rngs=nnx.Rngs(0))))[0]

    def logits(params, tokens, key):
        return nnx.merge(graph, params)(tokens, key=key)[..., :vocab_size]

    return logits
