"""One step of a run once more: from the nearest checkpoint, with its very batch and masks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dropout_jax import fold
from minigpt.checkpoint import manager as checkpoint
from minigpt.config import Config
from minigpt.data.batches import batch, starts
from minigpt.data.dataset import load_tokens
from minigpt.distributed.mesh import mesh_of
from minigpt.model.dropout_sites import FullTape, places
from minigpt.model.gpt import GPT
from minigpt.run import metrics
from minigpt.run.directory import Run
from minigpt.training import finetune
from minigpt.training.train_step import Training, TrainState, start


class Numbers(NamedTuple):
    """What is said of a site."""

    rate: Any
    dropped: Any
    """the share of its mask"""
    input_mean: Any
    input_rms: Any
    input_largest: Any
    """the magnitude"""
    output_rms: Any
    not_finite: Any
    """how many numbers of the input are NaN or infinite"""


class Replay(NamedTuple):
    """What a step was made of and what it measured."""

    step: int
    begun_from: int
    """the step of the checkpoint; 0 is the start"""
    starts: list[int]
    """the rows of the batch begin at these tokens of the training text"""
    measured: dict[str, float]
    """by the trainer's own step: train_loss and the norms"""
    recorded: float | None
    """train_loss in metrics.jsonl, if the step is there"""
    sites: dict[str, Numbers]
    """in the order of the forward pass"""


def replay(run_dir: Path, step: int, warn: Callable[[str], object]) -> Replay:
    """Make a step again; steps count from 1, as in metrics.jsonl. Writes nothing."""
    run = Run.load(run_dir)
    config = run.config
    if not 1 <= step <= config.steps:
        raise ValueError(
            f"step={step} is not allowed: the steps of {str(run_dir)!r} are 1 to {config.steps}."
        )
    tokens = load_tokens(config.data, config.tokenizer, run.given_tokenizer)
    run.require_same_text(tokens.sha256, tokens.tokenizer)
    try:
        mesh_of(config)
    except ValueError as error:
        warn(f"{error} This is on one device, and equal to rounding.")
        config = dataclasses.replace(config, mesh="data=1")
    training, root = start(config, run.vocab_size), jax.random.key(config.seed)
    state = _nearest(run_dir, training, config, step - 1, warn)
    begun_from, shape = int(state.step), (config.batch_size, config.model.block_size)
    for n in _shown(range(begun_from, step - 1)):
        rows = training.put_batch(batch(tokens.train, config.seed, n, *shape))
        state, _ = training.train_step(state, rows, root)
    rows = batch(tokens.train, config.seed, step - 1, *shape)
    key = fold(root, "dropout", step - 1)  # as train_step folds it
    sites = _sites(run, state.params, rows.inputs, key)
    _, measured = training.train_step(state, training.put_batch(rows), root)
    recorded = {record["step"]: record["train_loss"] for record in metrics.read(run_dir)}
    return Replay(
        step,
        begun_from,
        starts(tokens.train, config.seed, step - 1, *shape).tolist(),
        {name: float(value) for name, value in measured.items()},
        recorded.get(step),
        sites,
    )


def _nearest(run_dir: Path, training: Training, config: Config, most: int, warn) -> TrainState:
    """The newest good checkpoint of at most that step, or the state at the start."""
    found = checkpoint.newest_good(run_dir, training.state, warn, most=most)
    return training.put(found[0]) if found else finetune.first_state(training, config, run_dir)


def _shown(steps: range):
    """With a bar, where they are many."""
    return track(
        steps, "steps before", console=Console(stderr=True), transient=True, disable=len(steps) < 10
    )


def _sites(run: Run, params: Any, tokens: np.ndarray, key: jax.Array | None) -> dict[str, Numbers]:
    """What one forward pass writes down of every site."""
    model = run.config.model
    graph = nnx.graphdef(nnx.eval_shape(lambda: GPT(model, run.vocab_size, rngs=nnx.Rngs(0))))
    names = []

    @jax.jit
    def taped(params, tokens, key):
        tape = FullTape()
        nnx.merge(graph, params)(tokens, key=key, tape=tape)
        names.extend(tape)
        return [_numbers(**held) for held in tape.values()]

    found = jax.device_get(taped(jax.device_get(params), tokens, key))
    dropping = places(model, *tokens.shape)
    rates = [dropping[name].rate if name in dropping else 0.0 for name in names]
    numbers = (Numbers(*map(np.ndarray.item, each)) for each in found)
    return {
        name: each._replace(rate=rate)
        for name, rate, each in zip(names, rates, numbers, strict=True)
    }


def _numbers(input, output, mask=None) -> Numbers:
    x, y = (each.astype(jnp.float32) for each in (input, output))
    return Numbers(
        jnp.zeros(()),
        jnp.zeros(()) if mask is None else (~mask).astype(jnp.float32).mean(),
        x.mean(),
        jnp.sqrt(jnp.square(x).mean()),
        jnp.abs(x).max(),
        jnp.sqrt(jnp.square(y).mean()),
        (~jnp.isfinite(x)).sum(),
    )


def plain(result: Replay) -> dict[str, Any]:
    """As JSON can hold it: a number that is not finite is null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(item) for name, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    sites = {name: numbers._asdict() for name, numbers in result.sites.items()}
    return finite(result._asdict() | {"sites": sites})


def show(result: Replay, console: Console) -> None:
    """Print a step and its sites; the first with a number that is not finite is marked."""
    begun = f"the checkpoint of step {result.begun_from}" if result.begun_from else "the start"
    loss, recorded = result.measured["train_loss"], result.recorded
    beside = "metrics.jsonl has no line of it"
    if recorded is not None:
        beside = f"metrics.jsonl has {'the same' if recorded == loss else repr(recorded)}"
    norms = "  ".join(f"{name} {v:.6g}" for name, v in result.measured.items() if "norm" in name)
    console.print(
        f"step {result.step}, made from {begun}\ntrain_loss {loss!r} ({beside})  {norms}\n"
        f"the rows of the batch begin at the tokens {result.starts}"
    )
    console.width = max(console.width, 96)  # no number is cut, whatever it is printed into
    console.print(_table(result.sites))


def _table(sites: dict[str, Numbers]) -> Table:
    table, marked = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)), False
    table.add_column("site", no_wrap=True)
    for name in Numbers._fields:
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for name, numbers in sites.items():
        first = bool(numbers.not_finite) and not marked
        marked |= first
        cells = [f"{value:.3g}" for value in numbers[:-1]] + [str(numbers.not_finite)]
        table.add_row(f"{name} <- first" if first else name, *cells, style="red" if first else None)
    return table
