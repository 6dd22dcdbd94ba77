"""The small GPT of the claims, trained by minigpt's own step."""

import dataclasses
from typing import Any, NamedTuple

import jax

from common.data import Text
from minigpt.config import Config, DropoutConfig, ModelConfig, OptimConfig
from minigpt.data import make_batch
from minigpt.training import CompiledSteps, build_train_functions, estimate_loss

SMALL = ModelConfig(n_layer=2, n_head=4, n_embd=64, block_size=64)


class Curve(NamedTuple):
    """A run: the losses of both texts, dropout off, at some steps; and the last parameters."""

    steps: list[int]
    train: list[float]
    validation: list[float]
    params: Any


def make_config(steps: int, model: ModelConfig = SMALL, rate: float = 0.0, **more) -> Config:
    """The settings of a short run; `rate` is that of nanoGPT's four sites."""
    if rate:
        model = dataclasses.replace(model, dropout=DropoutConfig.uniform(rate))
    optim = more.pop("optim", OptimConfig(learning_rate=2e-3, warmup_steps=min(50, steps // 5)))
    return Config(steps=steps, batch_size=16, mesh="data=1", model=model, optim=optim, **more)


def compile_steps(config: Config, text: Text) -> CompiledSteps:
    """The compiled steps of a run; reuse them for all seeds of the same settings."""
    return build_train_functions(config, text.tokenizer.vocab_size)


def train(
    compiled: CompiledSteps,
    config: Config,
    text: Text,
    seed: int,
    *,
    evals: int = 5,
    params: Any = None,
) -> Curve:
    """Train from the seed's weights or from `params`; evaluate both texts `evals` times."""
    config = dataclasses.replace(config, seed=seed)
    state = build_train_functions(config, text.tokenizer.vocab_size).state
    if params is not None:
        state = state._replace(params=jax.tree.map(lambda leaf: leaf.copy(), params))
    root, size = jax.random.key(seed), (config.batch_size, config.model.block_size)
    evaluations = {round(config.steps * (i + 1) / evals) for i in range(evals)}
    steps, losses = [], []
    for step in range(config.steps):
        rows = make_batch(text.train, seed, step, *size)
        state, _ = compiled.train_step(state, compiled.put_batch(rows), root)
        if step + 1 in evaluations:
            steps.append(step + 1)
            losses.append(estimate_losses(compiled, state.params, config, text))
    training, validation = map(list, zip(*losses, strict=True))
    return Curve(steps, training, validation, state.params)


def estimate_losses(
    compiled: CompiledSteps, params: Any, config: Config, text: Text
) -> tuple[float, float]:
    """The losses of the training and the validation text, dropout off, from 8 even batches."""
    size = {"batch_size": config.batch_size, "block_size": config.model.block_size}

    def loss(tokens):
        return estimate_loss(compiled.eval_step, params, tokens, batches=8, **size)

    return loss(text.train), loss(text.validation)
