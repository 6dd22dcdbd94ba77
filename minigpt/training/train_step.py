"""One step of training, and of evaluation: pure functions of state, batch and key."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from dropout_jax import fold
from minigpt.config import Config
from minigpt.data import Batch, make_batch
from minigpt.distributed import (
    constrain_batch_sharding,
    make_mesh,
    replicated,
    shard_batch,
    shard_state,
    state_shardings,
    use_mesh,
)
from minigpt.model import GPT
from minigpt.training.optimizer import build_optimizer


class TrainState(NamedTuple):
    """All that training changes."""

    step: jax.Array
    params: Any
    opt_state: Any


class CompiledSteps(NamedTuple):
    """The compiled steps of a model on a mesh, and the state before the first step."""

    mesh: Mesh
    state: TrainState
    train_step: MeshFunction
    """(state, batch, the run's key) to (state, what was measured); it consumes the state"""
    eval_step: MeshFunction
    """(params, batch) to the loss of every target"""
    logits: MeshFunction
    """(params, tokens) to logits, dropout off"""
    gather: MeshFunction
    """a state to the same, whole on every device"""

    def put_batch(self, batch: Batch) -> Batch:
        """A batch from the host, its rows spread over the mesh."""
        rows, columns = batch.inputs.shape
        return shard_batch(
            self.mesh, (rows, columns), lambda part: Batch(*(each[part] for each in batch))
        )

    def put(self, state: TrainState) -> TrainState:
        """A state from the host, laid out on the mesh."""
        return shard_state(self.mesh, state)

    def gathered(self, state: TrainState) -> TrainState:
        """The state with every array where this process can read it."""
        if jax.process_count() == 1:
            return state
        return self.gather(state)


def build_train_functions(config: Config, vocab_size: int) -> CompiledSteps:
    """Build the model, its optimizer and the steps; the weights follow from config.seed."""
    mesh = make_mesh(config)
    model = GPT(config.model, vocab_size, rngs=nnx.Rngs(config.seed))
    graph, params = nnx.split(model)
    tx = build_optimizer(config.optim, config.steps)
    state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
    places, everywhere = state_shardings(mesh, state), replicated(mesh)

    def train_step(state: TrainState, batch: Batch, key: jax.Array):
        dropout_key = fold(key, "dropout", state.step)

        def mean_loss(params, part: Batch, start):
            smoothing = config.label_smoothing
            return token_losses(graph, params, part, dropout_key, smoothing, start).mean()

        value_and_grad = jax.value_and_grad(mean_loss)
        loss, gradient = accumulate_gradients(
            config.accumulate, value_and_grad, state.params, batch
        )
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        measured = {
            "train_loss": loss,
            "grad_norm": optax.tree.norm(gradient),
            "param_norm": optax.tree.norm(params),
        }
        return TrainState(state.step + 1, params, opt_state), measured

    def eval_step(params, batch: Batch):
        return token_losses(graph, params, batch, None)

    def logits(params, tokens):
        return nnx.merge(graph, params)(tokens, key=None)

    return CompiledSteps(
        mesh,
        shard_state(mesh, state),
        MeshFunction(
            mesh, jax.jit(train_step, donate_argnums=0, out_shardings=(places, everywhere))
        ),
        MeshFunction(mesh, jax.jit(eval_step, out_shardings=everywhere)),
        MeshFunction(mesh, jax.jit(logits, out_shardings=everywhere)),
        MeshFunction(mesh, jax.jit(lambda state: state, out_shardings=everywhere)),
    )


class MeshFunction(NamedTuple):
    """A compiled step, traced and called with the mesh in effect."""

    mesh: Mesh
    step: Any

    def __call__(self, *args: Any) -> Any:
        """Make the step."""
        with use_mesh(self.mesh):
            return self.step(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """What jax.jit's `lower` gives."""
        with use_mesh(self.mesh):
            return self.step.lower(*args)


def initial_state(compiled: CompiledSteps, saved: Any, parent: Any) -> TrainState:
    """The state that a run continues from: the saved one, the seed's with the parent's weights, or
    the seed's.

    What is replaced is deleted from the devices, so that two states never lie beside each other.
    """
    fresh = compiled.state
    if saved is not None:
        jax.tree.map(lambda leaf: leaf.delete(), fresh)
        return compiled.put(saved)
    if parent is not None:
        jax.tree.map(lambda leaf: leaf.delete(), fresh.params)
        return fresh._replace(params=shard_state(compiled.mesh, parent.params))
    return fresh


def make_train_batch(mesh: Mesh, tokens: np.ndarray, config: Config, step: int) -> Batch:
    """A step's batch on the mesh; each process reads the rows of its own devices only."""
    shape = (config.batch_size, config.model.block_size)
    return shard_batch(
        mesh, shape, lambda rows: make_batch(tokens, config.seed, step, *shape, rows)
    )


def accumulate_gradients(count: int, value_and_grad, params, batch: Batch):
    """The mean over `count` parts of a batch, one after the other: less memory, the same sums."""
    if count == 1:
        return value_and_grad(params, batch, None)
    rows = batch.inputs.shape[0] // count

    def add(sums, part):
        start, inputs, targets = part
        found = value_and_grad(params, Batch(inputs, targets), start)
        return jax.tree.map(jnp.add, sums, found), None

    parts = [
        constrain_batch_sharding(jnp.reshape(each, (count, rows, -1)), axis=1) for each in batch
    ]
    starts = jnp.arange(count, dtype=jnp.uint32) * rows
    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    sums, _ = jax.lax.scan(add, zeros, (starts, *parts))
    return jax.tree.map(lambda leaf: leaf / count, sums)


def token_losses(
    graph,
    params,
    batch: Batch,
    key: jax.Array | None,
    label_smoothing: float = 0.0,
    start: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of every target in nats; `key=None` is evaluation."""
    logits = nnx.merge(graph, params)(batch.inputs, key=key, start=start)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    if label_smoothing == 0:
        return losses
    even = -jax.nn.log_softmax(logits).mean(axis=-1)
    return (1 - label_smoothing) * losses + label_smoothing * even
