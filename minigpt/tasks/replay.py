"""Replay one step of a run from the nearest checkpoint, with the same batch and masks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
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
from minigpt.data import Answers, batch_rows, describe_rows, load_run_dataset, make_batch
from minigpt.distributed import fit_mesh
from minigpt.model import GPT, CaptureAll, site_specs
from minigpt.run import (
    RunSpec,
    add_frozen,
    checkpoint_like,
    read_metrics,
    restore_parent_copy,
)
from minigpt.training import (
    RATE_PREFIX,
    CompiledSteps,
    TrainState,
    build_train_functions,
    initial_state,
    make_train_batch,
)


class SiteStatistics(NamedTuple):
    """Numbers of one dropout site in one forward pass."""

    rate: Any
    dropped: Any
    """share of the mask that is dropped"""
    input_mean: Any
    input_rms: Any
    input_largest: Any
    """largest absolute value of the input"""
    output_rms: Any
    not_finite: Any
    """number of input elements that are NaN or infinite"""


class ReplayedStep(NamedTuple):
    """The batch, the metrics and the dropout sites of a replayed step."""

    step: int
    restored_step: int
    """step of the checkpoint; 0 is the initial state"""
    window_offsets: list[int]
    """position of each row's first token in the training text; of conversations, none"""
    conversations: list[int] | None
    """index of each row's conversation in the training part; None for a text"""
    measured: dict[str, float]
    """metrics of the replayed step: train_loss and the norms"""
    recorded: float | None
    """train_loss of this step in metrics.jsonl; None if it has no line there"""
    sites: dict[str, SiteStatistics]
    """by the site's name, in the order of the forward pass"""


def replay(run_dir: Path, step: int, warn: Callable[[str], object]) -> ReplayedStep:
    """Run a step again; steps count from 1, as in metrics.jsonl. Writes nothing."""
    run = RunSpec.load(run_dir)
    config = run.config
    _require_step(run_dir, config, step)
    dataset = load_run_dataset(config, run.inherited_tokenizer, run.chat_template)
    run.require_same_text(dataset.sha256, dataset.tokenizer)
    config = fit_mesh(config, warn, "The replay runs on one device and agrees up to rounding.")
    compiled, root = build_train_functions(config, run.vocab_size), jax.random.key(config.seed)
    state = _state_before(run_dir, compiled, config, step, warn)
    restored_step = int(state.step)
    for earlier_step in _track(range(restored_step, step - 1)):
        sharded_batch = make_train_batch(compiled.mesh, dataset.train, config, earlier_step)
        state, _ = compiled.train_step_at(config, earlier_step)(state, sharded_batch, root)
    shape = (config.batch_size, config.model.block_size)
    batch = make_batch(dataset.train, config.seed, step - 1, *shape)
    key = fold(root, "dropout", step - 1)  # the same key as in train_step
    params = jax.device_get(state.params)  # the step deletes the state
    sharded_batch = make_train_batch(compiled.mesh, dataset.train, config, step - 1)
    _, metrics = compiled.train_step_at(config, step - 1)(state, sharded_batch, root)
    sites = _site_statistics(_with_rates(run, metrics), params, batch.inputs, key)
    recorded_losses = {record["step"]: record["train_loss"] for record in read_metrics(run_dir)}
    rows = batch_rows(dataset.train, config.seed, step - 1, *shape)
    is_text = not isinstance(dataset.train, Answers)
    return ReplayedStep(
        step=step,
        restored_step=restored_step,
        window_offsets=rows if is_text else [],
        conversations=None if is_text else rows,
        measured={name: float(value) for name, value in metrics.items()},
        recorded=recorded_losses.get(step),
        sites=sites,
    )


def _require_step(run_dir: Path, config: Config, step: int) -> None:
    if config.imported_from:
        raise ValueError(
            f"run_dir={str(run_dir)!r} is not allowed: it is an imported model, which has no "
            "training steps. Name a run of minigpt train or minigpt finetune."
        )
    if not 1 <= step <= config.steps:
        raise ValueError(
            f"step={step} is not allowed: the run in {str(run_dir)!r} has the steps 1 to "
            f"{config.steps}."
        )


def _state_before(
    run_dir: Path,
    compiled: CompiledSteps,
    config: Config,
    step: int,
    warn: Callable[[str], object],
) -> TrainState:
    """The latest valid checkpoint before a step, or the state before step 1."""
    like = checkpoint_like(config, compiled.state)
    restored = restore_latest_valid(run_dir, like, warn, max_step=step - 1)
    if restored:
        state = add_frozen(run_dir, config, compiled.state, *restored)
        return initial_state(compiled, config, state, None)
    parent = restore_parent_copy(run_dir, compiled.state) if config.parent else None
    return initial_state(compiled, config, None, parent)


def _with_rates(run: RunSpec, metrics: dict[str, Any]) -> RunSpec:
    """The run with the dropout rates of a step, which are metrics of it if a schedule runs."""
    rates = {
        name.removeprefix(RATE_PREFIX): float(value)
        for name, value in metrics.items()
        if name.startswith(RATE_PREFIX)
    }
    model = run.config.model
    model = dataclasses.replace(model, dropout=dataclasses.replace(model.dropout, **rates))
    return run._replace(config=dataclasses.replace(run.config, model=model))


def _track(steps: range) -> Iterable[int]:
    """Show a progress bar for ten steps or more."""
    return track(
        steps,
        "earlier steps",
        console=Console(stderr=True),
        transient=True,
        disable=len(steps) < 10,
    )


def _site_statistics(
    run: RunSpec, params: Any, tokens: np.ndarray, key: jax.Array | None
) -> dict[str, SiteStatistics]:
    """The statistics of every site in one forward pass."""
    model = run.config.model
    graph = nnx.graphdef(nnx.eval_shape(lambda: GPT(model, run.vocab_size, rngs=nnx.Rngs(0))))
    names: list[str] = []

    @jax.jit
    def capture(params: Any, tokens: jax.Array, key: jax.Array | None) -> list[SiteStatistics]:
        captures = CaptureAll()
        nnx.merge(graph, params)(tokens, key=key, captures=captures)
        names.extend(captures)
        return [_statistics(**arrays) for arrays in captures.values()]

    captured = jax.device_get(capture(params, jnp.asarray(tokens), key))
    specs = site_specs(model, *tokens.shape)
    rates = [specs[name].rate if name in specs else 0.0 for name in names]
    statistics = (SiteStatistics(*map(np.ndarray.item, numbers)) for numbers in captured)
    return {
        name: site._replace(rate=rate)
        for name, rate, site in zip(names, rates, statistics, strict=True)
    }


def _statistics(
    input: jax.Array, output: jax.Array, mask: jax.Array | None = None
) -> SiteStatistics:
    x, y = input.astype(jnp.float32), output.astype(jnp.float32)
    return SiteStatistics(
        rate=jnp.zeros(()),
        dropped=jnp.zeros(()) if mask is None else (~mask).astype(jnp.float32).mean(),
        input_mean=x.mean(),
        input_rms=jnp.sqrt(jnp.square(x).mean()),
        input_largest=jnp.abs(x).max(),
        output_rms=jnp.sqrt(jnp.square(y).mean()),
        not_finite=(~jnp.isfinite(x)).sum(),
    )


def to_json(result: ReplayedStep) -> dict[str, Any]:
    """Convert to JSON's types; NaN and infinity become null."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: convert(item) for name, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    sites = {name: statistics._asdict() for name, statistics in result.sites.items()}
    return convert(result._asdict() | {"sites": sites})


def print_replay(result: ReplayedStep, console: Console) -> None:
    """Print a step and its sites; mark the first site with an input that is not finite."""
    source = "the initial state"
    if result.restored_step:
        source = f"the checkpoint of step {result.restored_step}"
    loss, recorded = result.measured["train_loss"], result.recorded
    comparison = "metrics.jsonl has no line for this step"
    if recorded is not None:
        comparison = f"metrics.jsonl has {'the same' if recorded == loss else repr(recorded)}"
    is_text = result.conversations is None
    norms = "  ".join(f"{name} {v:.6g}" for name, v in result.measured.items() if "norm" in name)
    console.print(
        f"step {result.step}, replayed from {source}\n"
        f"train_loss {loss!r} ({comparison})  {norms}\n"
        f"{describe_rows(result.conversations or result.window_offsets, is_text=is_text)}"
    )
    console.width = max(console.width, 96)  # so that the table cuts no number
    console.print(_table(result.sites))


def _table(sites: dict[str, SiteStatistics]) -> Table:
    table, is_marked = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)), False
    table.add_column("site", no_wrap=True)
    for name in SiteStatistics._fields:
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for name, statistics in sites.items():
        is_first = bool(statistics.not_finite) and not is_marked
        is_marked |= is_first
        cells = [f"{value:.3g}" for value in statistics[:-1]] + [str(statistics.not_finite)]
        label, style = (f"{name} <- first", "red") if is_first else (name, None)
        table.add_row(label, *cells, style=style)
    return table
