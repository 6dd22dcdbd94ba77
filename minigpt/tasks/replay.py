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
from minigpt.checkpoint import restore_latest_valid
from minigpt.config import Config
from minigpt.data import load_dataset, make_batch, window_offsets
from minigpt.distributed import make_mesh
from minigpt.model import GPT, FullTape, site_specs
from minigpt.run import RunSpec, read_metrics, restore_parent_copy
from minigpt.training import (
    CompiledSteps,
    TrainState,
    build_train_functions,
    initial_state,
    make_train_batch,
)


class SiteStatistics(NamedTuple):
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


class ReplayedStep(NamedTuple):
    """What a step was made of and what it measured."""

    step: int
    restored_step: int
    """the step of the checkpoint; 0 is the start"""
    window_offsets: list[int]
    """the rows of the batch begin at these tokens of the training text"""
    measured: dict[str, float]
    """by the trainer's own step: train_loss and the norms"""
    recorded: float | None
    """train_loss in metrics.jsonl, if the step is there"""
    sites: dict[str, SiteStatistics]
    """in the order of the forward pass"""


def replay(run_dir: Path, step: int, warn: Callable[[str], object]) -> ReplayedStep:
    """Make a step again; steps count from 1, as in metrics.jsonl. Writes nothing."""
    run = RunSpec.load(run_dir)
    config = run.config
    if not 1 <= step <= config.steps:
        raise ValueError(
            f"step={step} is not allowed: the steps of {str(run_dir)!r} are 1 to {config.steps}."
        )
    dataset = load_dataset(config.data, config.tokenizer, run.given_tokenizer)
    run.require_same_text(dataset.sha256, dataset.tokenizer)
    try:
        make_mesh(config)
    except ValueError as error:
        warn(f"{error} This is on one device, and equal to rounding.")
        config = dataclasses.replace(config, mesh="data=1")
    compiled, root = build_train_functions(config, run.vocab_size), jax.random.key(config.seed)
    state = _state_before(run_dir, compiled, config, step, warn)
    restored_step = int(state.step)
    for earlier in _track(range(restored_step, step - 1)):
        rows = make_train_batch(compiled.mesh, dataset.train, config, earlier)
        state, _ = compiled.train_step(state, rows, root)
    shape = (config.batch_size, config.model.block_size)
    batch = make_batch(dataset.train, config.seed, step - 1, *shape)
    key = fold(root, "dropout", step - 1)  # as train_step folds it
    sites = _site_statistics(run, state.params, batch.inputs, key)
    rows = make_train_batch(compiled.mesh, dataset.train, config, step - 1)
    _, measured = compiled.train_step(state, rows, root)
    recorded = {record["step"]: record["train_loss"] for record in read_metrics(run_dir)}
    return ReplayedStep(
        step,
        restored_step,
        window_offsets(dataset.train, config.seed, step - 1, *shape).tolist(),
        {name: float(value) for name, value in measured.items()},
        recorded.get(step),
        sites,
    )


def _state_before(
    run_dir: Path, compiled: CompiledSteps, config: Config, step: int, warn
) -> TrainState:
    """The latest valid checkpoint before a step, or the state before step 1."""
    like = compiled.state
    restored = restore_latest_valid(run_dir, like, warn, most=step - 1)
    if restored:
        return initial_state(compiled, restored[0], None)
    return initial_state(compiled, None, config.parent and restore_parent_copy(run_dir, like))


def _track(steps: range):
    """Show a progress bar for ten steps or more."""
    return track(
        steps, "steps before", console=Console(stderr=True), transient=True, disable=len(steps) < 10
    )


def _site_statistics(
    run: RunSpec, params: Any, tokens: np.ndarray, key: jax.Array | None
) -> dict[str, SiteStatistics]:
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
    dropping = site_specs(model, *tokens.shape)
    rates = [dropping[name].rate if name in dropping else 0.0 for name in names]
    numbers = (SiteStatistics(*map(np.ndarray.item, each)) for each in found)
    return {
        name: each._replace(rate=rate)
        for name, rate, each in zip(names, rates, numbers, strict=True)
    }


def _numbers(input, output, mask=None) -> SiteStatistics:
    x, y = (each.astype(jnp.float32) for each in (input, output))
    return SiteStatistics(
        jnp.zeros(()),
        jnp.zeros(()) if mask is None else (~mask).astype(jnp.float32).mean(),
        x.mean(),
        jnp.sqrt(jnp.square(x).mean()),
        jnp.abs(x).max(),
        jnp.sqrt(jnp.square(y).mean()),
        (~jnp.isfinite(x)).sum(),
    )


def to_json(result: ReplayedStep) -> dict[str, Any]:
    """As JSON can hold it: a number that is not finite is null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(item) for name, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    sites = {name: numbers._asdict() for name, numbers in result.sites.items()}
    return finite(result._asdict() | {"sites": sites})


def print_replay(result: ReplayedStep, console: Console) -> None:
    """Print a step and its sites; the first with a number that is not finite is marked."""
    source = (
        f"the checkpoint of step {result.restored_step}" if result.restored_step else "the start"
    )
    loss, recorded = result.measured["train_loss"], result.recorded
    beside = "metrics.jsonl has no line of it"
    if recorded is not None:
        beside = f"metrics.jsonl has {'the same' if recorded == loss else repr(recorded)}"
    norms = "  ".join(f"{name} {v:.6g}" for name, v in result.measured.items() if "norm" in name)
    console.print(
        f"step {result.step}, made from {source}\ntrain_loss {loss!r} ({beside})  {norms}\n"
        f"the rows of the batch begin at the tokens {result.window_offsets}"
    )
    console.width = max(console.width, 96)  # no number is cut, whatever it is printed into
    console.print(_table(result.sites))


def _table(sites: dict[str, SiteStatistics]) -> Table:
    table, marked = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)), False
    table.add_column("site", no_wrap=True)
    for name in SiteStatistics._fields:
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for name, numbers in sites.items():
        first = bool(numbers.not_finite) and not marked
        marked |= first
        cells = [f"{value:.3g}" for value in numbers[:-1]] + [str(numbers.not_finite)]
        table.add_row(f"{name} <- first" if first else name, *cells, style="red" if first else None)
    return table
