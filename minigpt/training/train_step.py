"""The training step and the evaluation step: pure functions of state, batch and key."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from dropout_jax import fold
from minigpt.config import Config
from minigpt.data import AnswerBatch, Answers, Batch, make_batch
from minigpt.distributed import (
    MeshFunction,
    abstract_batch,
    abstract_state,
    constrain_batch_sharding,
    make_mesh,
    replicated,
    shard_batch,
    shard_state,
    state_shardings,
)
from minigpt.model import (
    GPT,
    GenerationSteps,
    build_generation_steps,
    join_trained,
    set_rates,
    split_trained,
)
from minigpt.training.dropout_schedule import require_dropout, scheduled_rates
from minigpt.training.optimizer import build_optimizer

RATE_PREFIX = "dropout/"  # of the metrics that are the rates of a schedule


class TrainState(NamedTuple):
    """Everything that a training step changes."""

    step: jax.Array
    params: Any
    """all parameters; opt_state has the trained ones only"""
    opt_state: Any


class CompiledSteps(NamedTuple):
    """The compiled steps of a model on a mesh, and the state before the first step."""

    mesh: Mesh
    state: TrainState
    train_step: MeshFunction
    """(state, batch, the run's key) to (new state, metrics); the old state is donated"""
    earlier_train_steps: Mapping[int, MeshFunction]
    """of an extended run: by the number of steps that it had before, the step with its schedules"""
    eval_step: MeshFunction
    """(params, batch) to the loss of every target"""
    logits: MeshFunction
    """(params, tokens) to logits, dropout off"""
    generation: GenerationSteps
    """for `minigpt.model.generate_ids`"""
    gather: MeshFunction
    """a state to the same state, replicated on every device"""

    def train_step_at(self, config: Config, step: int) -> MeshFunction:
        """The function that makes this step, from 0: a program of its own for each extension.

        So the steps before an extension are made again bit for bit.
        """
        return self.earlier_train_steps.get(config.steps_at(step), self.train_step)

    def put_batch(self, batch: Batch) -> Batch:
        """Shard the rows of a batch on the host over the mesh."""
        rows, columns = batch.inputs.shape
        return shard_batch(
            self.mesh, (rows, columns), lambda part: Batch(*(array[part] for array in batch))
        )

    def put_state(self, state: TrainState) -> TrainState:
        """Shard a state on the host over the mesh."""
        return shard_state(self.mesh, state)

    def gather_state(self, state: TrainState) -> TrainState:
        """The state with arrays that this process can read completely."""
        if jax.process_count() == 1:
            return state
        return self.gather(state)


def build_train_functions(config: Config, vocab_size: int) -> CompiledSteps:
    """Build the model, its optimizer and the steps; config.seed decides the initial weights."""
    mesh = make_mesh(config)
    graph, params = nnx.split(_make_model(config, vocab_size))
    tx = build_optimizer(config.optim, config.steps)
    return _build_steps(config, mesh, graph, shard_state(mesh, _make_state(config, tx, params)))


def build_abstract_train_functions(
    config: Config, vocab_size: int, devices: Sequence[Any]
) -> CompiledSteps:
    """Build the same steps for devices that need not be there; no array is made.

    The state is of `jax.ShapeDtypeStruct`, so the steps can be lowered and compiled, but not
    called: `steps.train_step.lower(*abstract_train_inputs(steps, config)).compile()`.
    """
    mesh = make_mesh(config, devices)
    graph, params = nnx.split(nnx.eval_shape(lambda: _make_model(config, vocab_size)))
    tx = build_optimizer(config.optim, config.steps)
    state = jax.eval_shape(lambda params: _make_state(config, tx, params), params)
    return _build_steps(config, mesh, graph, abstract_state(mesh, state))


def abstract_train_inputs(
    compiled: CompiledSteps, config: Config
) -> tuple[TrainState, Batch, jax.Array]:
    """The shapes, dtypes and shardings of what the training step takes: state, batch and key."""
    mesh = compiled.mesh
    key: Any = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    batch = abstract_batch(mesh, (config.batch_size, config.model.block_size))
    return abstract_state(mesh, compiled.state), batch, key


def _make_model(config: Config, vocab_size: int) -> GPT:
    return GPT(config.model, vocab_size, rngs=nnx.Rngs(config.seed))


def _make_state(config: Config, tx: optax.GradientTransformation, params: Any) -> TrainState:
    trained, _ = split_trained(config, params)
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(trained))


def _build_steps(
    config: Config,
    mesh: Mesh,
    graph: nnx.GraphDef[GPT],
    state: TrainState,
) -> CompiledSteps:
    require_dropout(config)
    sharded, whole = state_shardings(mesh, state), replicated(mesh)

    def eval_step(params: Any, batch: Batch) -> jax.Array:
        return token_losses(graph, params, batch, None)

    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(tokens, key=None)

    def train_step(steps: int) -> MeshFunction:
        step = _make_train_step(dataclasses.replace(config, steps=steps, extended_from=()), graph)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(sharded, whole))
        return MeshFunction(mesh, jitted)

    return CompiledSteps(
        mesh=mesh,
        state=state,
        train_step=train_step(config.steps),
        earlier_train_steps={steps: train_step(steps) for _, steps in config.extended_from},
        eval_step=MeshFunction(mesh, jax.jit(eval_step, out_shardings=whole)),
        logits=MeshFunction(mesh, jax.jit(logits, out_shardings=whole)),
        generation=build_generation_steps(graph, state.params, mesh),
        gather=MeshFunction(mesh, jax.jit(lambda state: state, out_shardings=whole)),
    )


def _make_train_step(
    config: Config, graph: nnx.GraphDef[GPT]
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    tx = build_optimizer(config.optim, config.steps)

    def train_step(
        state: TrainState, batch: Batch | AnswerBatch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if isinstance(batch, AnswerBatch):  # the mean of loss * weight is that over the answers
            batch = batch._replace(weights=batch.weights / batch.weights.mean())
        dropout_key = fold(key, "dropout", state.step)
        rates = scheduled_rates(config, state.step)
        trained, frozen = split_trained(config, state.params)

        def mean_loss(
            trained: Any, part: Batch | AnswerBatch, row_offset: jax.Array | None
        ) -> jax.Array:
            losses = token_losses(
                graph,
                join_trained(trained, frozen),
                part,
                dropout_key,
                label_smoothing=config.label_smoothing,
                row_offset=row_offset,
                rates=rates,
            )
            return (losses * part.weights if isinstance(part, AnswerBatch) else losses).mean()

        value_and_grad = jax.value_and_grad(mean_loss)
        loss, gradient = accumulate_gradients(config.accumulate, value_and_grad, trained, batch)
        updates, opt_state = tx.update(gradient, state.opt_state, trained)
        params = join_trained(optax.apply_updates(trained, updates), frozen)
        metrics = {
            "train_loss": loss,
            "grad_norm": optax.tree.norm(gradient),
            "param_norm": optax.tree.norm(params),
            **{f"{RATE_PREFIX}{name}": rate for name, rate in rates.items()},
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def initial_state(
    compiled: CompiledSteps, config: Config, saved: TrainState | None, parent: TrainState | None
) -> TrainState:
    """The saved state; or the initial state, with the parent's weights if there is a parent.

    The trained LoRA layers are those of the initial state: the parent has none.

    Arrays that are replaced are deleted from the devices first, so that no device holds two states.
    """
    state = compiled.state
    if saved is not None:
        jax.tree.map(lambda leaf: leaf.delete(), state)
        return compiled.put_state(saved)
    if parent is not None:
        params = parent.params
        if config.model.lora.rank is not None:
            lora = jax.tree.map(np.array, split_trained(config, state.params)[0])
            params = join_trained(lora, split_trained(config, params)[1])
        jax.tree.map(lambda leaf: leaf.delete(), state.params)
        return state._replace(params=shard_state(compiled.mesh, params))
    return state


def make_train_batch(
    mesh: Mesh, tokens: np.ndarray | Answers, config: Config, step: int
) -> Batch | AnswerBatch:
    """A step's batch on the mesh; each process reads the rows of its own devices only."""
    shape = (config.batch_size, config.model.block_size)

    def load_rows(rows: slice) -> Any:
        return make_batch(tokens, config.seed, step, *shape, rows=rows)

    kind: Any = AnswerBatch if isinstance(tokens, Answers) else Batch
    return shard_batch(mesh, shape, load_rows, kind)


def accumulate_gradients(
    count: int,
    value_and_grad: Callable[[Any, Any, jax.Array | None], tuple[jax.Array, Any]],
    params: Any,
    batch: Batch | AnswerBatch,
) -> tuple[jax.Array, Any]:
    """Mean loss and gradient over `count` parts of a batch, computed in turn to save memory."""
    if count == 1:
        return value_and_grad(params, batch, None)
    rows = batch.inputs.shape[0] // count

    def add(sums: Any, part: tuple[Any, ...]) -> tuple[Any, None]:
        row_offset, *arrays = part
        loss_and_gradient = value_and_grad(params, type(batch)(*arrays), row_offset)
        return jax.tree.map(jnp.add, sums, loss_and_gradient), None

    parts = [
        constrain_batch_sharding(jnp.reshape(array, (count, rows, -1)), axis=1) for array in batch
    ]
    row_offsets = jnp.arange(count, dtype=jnp.uint32) * rows
    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    offsets_and_parts: Any = (row_offsets, *parts)
    sums, _ = jax.lax.scan(add, zeros, offsets_and_parts)
    return jax.tree.map(lambda leaf: leaf / count, sums)


def token_losses(
    graph: nnx.GraphDef[GPT],
    params: Any,
    batch: Batch | AnswerBatch,
    key: jax.Array | None,
    *,
    label_smoothing: float = 0.0,
    row_offset: jax.Array | None = None,
    rates: Mapping[str, Any] | None = None,
) -> jax.Array:
    """Cross-entropy of every target in nats: (batch, time); `key=None` is evaluation.

    `rates`, by site and traced or not, replace those of the model.
    """
    model = nnx.merge(graph, params)
    if rates:
        set_rates(model, dataclasses.replace(model.config.dropout, **rates))
    logits = model(jnp.asarray(batch.inputs), key=key, row_offset=row_offset)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    if label_smoothing == 0:
        return losses
    uniform_losses = -jax.nn.log_softmax(logits).mean(axis=-1)
    return (1 - label_smoothing) * losses + label_smoothing * uniform_losses
