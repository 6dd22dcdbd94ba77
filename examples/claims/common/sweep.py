"""Runs of one small GPT at many rates: one jax.vmap over all seeds, one program for all rates.

The rates are traced, so this module draws the masks and passes them to the model
(minigpt.model.dropout_sites). Seed, batches, masks and optimizer are those of the trainer; a test
compares the two.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dropout_jax import apply_mask, fold, keep_mask
from minigpt.config import Config, DropoutConfig, ModelConfig, OptimConfig
from minigpt.data import window_offsets
from minigpt.model import GPT, site_specs
from minigpt.training import build_optimizer, learning_rate_schedule

# A constant learning rate of 1: each step multiplies by its own rate, which may be traced.
CONSTANT = {"learning_rate": 1.0, "min_learning_rate": 1.0, "warmup_steps": 0}
SITES = tuple(site for site in DropoutConfig().rates if site != "lora")
NANOGPT = ("embed", "attn_weights", "attn_out", "mlp_out")


class Curves(NamedTuple):
    """Runs that differ by their seed."""

    losses: dict[Any, np.ndarray]
    """of every watched text: (seeds, evaluations), dropout off"""
    params: Any
    """after the last step, seeds first"""


def initial_params(config: ModelConfig, vocab_size: int, seeds: range) -> Any:
    """The trainer's initial weights, seeds first."""
    each = [nnx.split(GPT(config, vocab_size, rngs=nnx.Rngs(seed)))[1] for seed in seeds]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def one_rate(sites: Iterable[str], rate: float) -> DropoutConfig:
    """Dropout of one rate at some sites."""
    rates: dict[str, Any] = dict.fromkeys(sites, rate)
    return DropoutConfig(**rates)


def draw_masks(config: ModelConfig, rates: Mapping[str, Any], key: jax.Array, batch: int):
    """A config with dropout at these sites, and masks and scales at rates that may be traced.

    The masks are the ones that a model with these rates draws from the key.
    """
    dropping = dataclasses.replace(config, dropout=one_rate(rates, 0.5))
    masks_by_site = {}
    for name, spec in site_specs(dropping, batch, config.block_size).items():
        parts = name.split("/")
        path = [int(part) if part.isdigit() else part for part in parts]
        rate = next(rates[part] for part in parts if part in rates)
        scale = apply_mask(jnp.ones(()), jnp.ones((), bool), rate)
        masks_by_site[name] = keep_mask(fold(key, *path), rate, spec.shape), scale
    return dropping, masks_by_site


class Runner:
    """Trains the GPT of a config from all seeds at once; compiles once for many calls.

    Each call may set the rates of `sites`. Without sites, the config's dropout is used in every
    call, which is for models that scan over their layers.
    """

    def __init__(
        self, config: Config, vocab_size: int, seeds: range, evaluations: int, sites=NANOGPT
    ):
        self.config, self.vocab_size, self.seeds = config, vocab_size, seeds
        self.evaluations, self.sites = evaluations, sites
        self._program = jax.jit(jax.vmap(self._run, in_axes=(0, 0, 0, None, None, None)))

    def __call__(
        self,
        train: np.ndarray,
        watched: Mapping[Any, np.ndarray],
        dropout: DropoutConfig | None = None,
        *,
        optim: OptimConfig | None = None,
        params: Any = None,
    ) -> Curves:
        """Train on ids from `params` (seeds first) or from the seeds' initial weights.

        `optim` may change the learning rate, its warm-up and its minimum; the rest is compiled.
        """
        config, time = self.config, self.config.model.block_size
        if params is None:
            params = initial_params(config.model, self.vocab_size, self.seeds)
        each = [
            [
                window_offsets(train, seed, step, config.batch_size, time)
                for step in range(config.steps)
            ]
            for seed in self.seeds
        ]
        rows = windows(
            train, np.reshape(each, (len(each), self.evaluations, -1, config.batch_size)), time
        )
        rate = learning_rate_schedule(optim or config.optim, config.steps)
        losses, params = self._program(
            params,
            rows,
            jnp.stack([jax.random.key(seed) for seed in self.seeds]),
            self._rates(dropout or DropoutConfig()),
            jnp.asarray(rate(jnp.arange(config.steps)), jnp.float32),
            {name: windows(ids, even_offsets(ids, time), time) for name, ids in watched.items()},
        )
        return Curves({name: np.asarray(loss, np.float64) for name, loss in losses.items()}, params)

    def _rates(self, dropout: DropoutConfig) -> dict[str, float]:
        rates = dropout.rates
        others = [name for name, rate in rates.items() if rate and name not in self.sites]
        if others:
            raise ValueError(f"dropout={dropout} is not allowed: add {others} to the sites.")
        return {name: float(rates[name]) for name in self.sites}

    def _run(self, params, rows, key, rates, learning_rates, watched):
        tx = build_optimizer(dataclasses.replace(self.config.optim, **CONSTANT), 1)

        def step(carry, inputs):
            params, state = carry
            i, tokens, learning_rate = inputs
            gradient = jax.grad(self._loss)(params, tokens, rates, fold(key, "dropout", i))
            updates, state = tx.update(gradient, state, params)
            updates = jax.tree.map(lambda leaf: leaf * learning_rate, updates)
            return (optax.apply_updates(params, updates), state), None

        def train_then_evaluate(carry, inputs):
            carry, _ = jax.lax.scan(step, carry, inputs)
            return carry, {name: self._loss(carry[0], each) for name, each in watched.items()}

        steps = jnp.arange(self.config.steps, dtype=jnp.uint32)
        inputs = [
            each.reshape(self.evaluations, -1, *each.shape[1:]) for each in (steps, learning_rates)
        ]
        (params, _), losses = jax.lax.scan(
            train_then_evaluate, (params, tx.init(params)), (inputs[0], rows, inputs[1])
        )
        return losses, params

    def _loss(self, params, tokens, rates=None, key=None):
        settings, masks = self.config.model, None
        if key is not None and self.sites:
            settings, masks = draw_masks(settings, rates or {}, key, tokens.shape[0])
            key = None
        shape = jax.eval_shape(lambda: GPT(settings, self.vocab_size, rngs=nnx.Rngs(0)))
        model = nnx.merge(nnx.split(shape)[0], params)
        logits = model(tokens[:, :-1], key=key, masks=masks)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def windows(ids: np.ndarray, offsets: np.ndarray, time: int) -> np.ndarray:
    """Windows of `time` + 1 ids at these offsets."""
    return ids[offsets.astype(np.int64)[..., None] + np.arange(time + 1)].astype(np.int32)


def even_offsets(ids: np.ndarray, time: int, count: int = 96) -> np.ndarray:
    """Offsets of `count` windows, evenly spaced over a text."""
    return np.linspace(0, len(ids) - time - 1, count)
