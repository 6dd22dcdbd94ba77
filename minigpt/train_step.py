"""One step of training, and of evaluation: pure functions of state, batch and key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dropout_jax import fold
from minigpt.batches import Batch
from minigpt.config import Config
from minigpt.model import GPT
from minigpt.optim import optimizer


class TrainState(NamedTuple):
    """All that training changes."""

    step: jax.Array
    params: Any
    opt_state: Any


class Training(NamedTuple):
    """A model's structure with its compiled steps, and the state to start from."""

    state: TrainState
    train_step: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
    eval_step: Callable[[Any, Batch], jax.Array]
    logits: Callable[[Any, jax.Array], jax.Array]


def start(config: Config, vocab_size: int) -> Training:
    """Build the model, its optimizer and the steps; the weights follow from config.seed."""
    model = GPT(config.model, vocab_size, rngs=nnx.Rngs(config.seed))
    graph, params = nnx.split(model)
    tx = optimizer(config.optim, config.steps)

    def train_step(state: TrainState, batch: Batch, key: jax.Array):
        dropout_key = fold(key, "dropout", state.step)

        def mean_loss(params):
            return token_losses(graph, params, batch, dropout_key).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(state.params)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        measured = {
            "train_loss": loss,
            "grad_norm": optax.tree.norm(gradient),
            "param_norm": optax.tree.norm(params),
        }
        return TrainState(state.step + 1, params, opt_state), measured

    return Training(
        TrainState(jnp.zeros((), jnp.int32), params, tx.init(params)),
        jax.jit(train_step, donate_argnums=0),
        jax.jit(lambda params, batch: token_losses(graph, params, batch, None)),
        jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens, key=None)),
    )


def token_losses(graph, params, batch: Batch, key: jax.Array | None) -> jax.Array:
    """Cross-entropy of every target in nats; `key=None` is evaluation."""
    logits = nnx.merge(graph, params)(batch.inputs, key=key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
