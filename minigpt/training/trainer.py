"""The run: when to step, validate, log and save, and how to stop and go on; no mathematics."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from minigpt.checkpoint import CheckpointWriter, host_arrays, list_steps, restore_latest_valid
from minigpt.config import Config
from minigpt.data import load_dataset, require_length, take_windows, window_offsets
from minigpt.distributed import (
    any_process,
    barrier,
    is_main_process,
    is_single_process,
    require_equal,
    shard_batch,
)
from minigpt.run.directory import RunSpec
from minigpt.run.metrics import MetricsLog
from minigpt.training import console as shown
from minigpt.training import finetune, overfitting, plots, resume
from minigpt.training.context import TrainContext
from minigpt.training.evaluate import estimate_loss
from minigpt.training.interrupt import Interrupted, InterruptHandler
from minigpt.training.observers import Observers
from minigpt.training.throughput import flops_per_token, utilization
from minigpt.training.train_step import TrainState, build_train_functions

# What a step measures, by the words of an error.
MEASURED = {
    "train_loss": "loss",
    "grad_norm": "norm of the gradient",
    "param_norm": "norm of the new parameters",
}
VALIDATED = {
    "train_eval_loss": "loss of the training text at the validation",
    "val_loss": "loss of the validation text at the validation",
}


def train(config: Config, run_dir: Path, console: Console, *, fresh: bool = False) -> None:
    """Train to the last step, from the first or from the newest checkpoint in run_dir.

    SIGTERM and Ctrl-C leave an exact checkpoint. `fresh` refuses a folder that holds a run.
    """
    with InterruptHandler() as stopping:
        given = finetune.parent_tokenizer(config, run_dir)
        tokens = load_dataset(config.data, config.tokenizer, given)
        require_length(tokens.train, config.model.block_size, "training text")
        require_length(tokens.validation, config.model.block_size, "validation text")
        run = RunSpec(config, tokens.tokenizer, tokens.sha256)
        settings = dataclasses.replace(config, data=None)
        require_equal(f"{settings} {tokens.sha256}", "settings or texts")
        job = TrainContext(
            run, tokens, build_train_functions(config, run.vocab_size), run_dir, console, stopping
        )
        with resume.lock_run_dir(run_dir) if is_main_process() else nullcontext():
            if is_main_process():
                with finetune.copy_parent_checkpoint(
                    config, run_dir, job.training.state, console.print
                ):
                    resume.create_or_resume(run, run_dir, fresh=fresh)
            barrier("entered")
            try:
                _train(job)
            except Interrupted:
                barrier("stopped")
                step = list_steps(run_dir)[-1]
                goes_on = not resume.run_dir_is_finished(run_dir, config)
                then = "the same command goes on from there" if goes_on else "the run is finished"
                console.print(f"stopped at step {step}; {then}")


def _train(job: TrainContext) -> None:
    state, meta = _restored(job)
    step, first = int(state.step), is_main_process()
    require_equal(str(step), "newest checkpoints")
    with (
        _metrics(job, step, meta) as metrics,
        _writer(job) as writer,
        _observers(job, step) as observers,
    ):
        barrier("restored")
        shown.print_summary(job, step)
        state = _steps(job, state, meta, metrics, writer, observers)
    if first:
        plots.plot_losses(metrics.records, job.run_dir / "loss.png", job.run_dir.name)
    shown.print_sample(job, state.params)
    job.console.print(f"run directory: {job.run_dir}")


def _restored(job: TrainContext) -> tuple[TrainState, dict[str, Any]]:
    """The newest good checkpoint, or the state at the start."""
    state = job.training.state
    found = restore_latest_valid(job.run_dir, state, job.console.print)
    if found is None:
        return finetune.initial_state(job.training, job.config, job.run_dir), {}
    saved = job.run._replace(data_sha256=found[1]["data_sha256"])
    saved.require_same_text(job.run.data_sha256, job.run.tokenizer)
    jax.tree.map(lambda leaf: leaf.delete(), state)  # or it would lie beside the other
    return job.training.put(found[0]), found[1]


def _metrics(job: TrainContext, step: int, meta: dict[str, Any]) -> MetricsLog:
    """The records up to a checkpoint's step; without the one that is still pending there."""
    upto, writes = step - 1 if meta.get("pending") else step, is_main_process()
    crc32, warn = meta.get("metrics_crc32"), job.console.print
    return MetricsLog(job.run_dir, upto, crc32, warn, writes=writes)


class _NoWriter:
    """What the processes have that do not write."""

    def save(self, *_: Any) -> None:
        """Nothing."""

    def wait(self) -> None:
        """Nothing."""


def _writer(job: TrainContext) -> AbstractContextManager[CheckpointWriter | _NoWriter]:
    if is_main_process():
        return CheckpointWriter(job.run_dir, job.config.keep_checkpoints)
    return nullcontext(_NoWriter())


def _observers(job: TrainContext, step: int) -> Observers:
    config, first = job.config, is_main_process()
    profiled = config.profile_steps if first else 0
    tensorboard = config.tensorboard and first
    return Observers(job.run_dir, step, tensorboard=tensorboard, profile_steps=profiled)


def _steps(
    job: TrainContext,
    state: TrainState,
    meta: dict[str, Any],
    metrics: MetricsLog,
    writer: CheckpointWriter | _NoWriter,
    observers: Observers,
) -> TrainState:
    """Steps, records and checkpoints up to the last step.

    `pending` is the record of a step that was made and whose validation is still to come: a stop
    during the validation leaves it in the checkpoint.
    """
    config, root, step = job.config, jax.random.key(job.config.seed), int(state.step)
    clock = _Clock(config.batch_size * config.model.block_size, step, meta.get("elapsed_s", 0.0))
    pending, unseen = meta.get("pending"), []

    def save(**more) -> None:
        _require_finite(job, step, unseen, writer)
        metrics.sync()
        meta = {"data_sha256": job.run.data_sha256, "metrics_crc32": metrics.crc32}
        meta |= {"elapsed_s": clock.elapsed(), **more}
        writer.save(step, host_arrays(job.training.gathered(state)), meta)

    with shown.progress_bar(job.console) as progress:
        bar = progress.add_task("", total=config.steps, completed=step, shown="compiling")
        while pending or not resume.is_finished(config, step, metrics.records):
            if not pending:
                if _stops(job, step):
                    save()
                    writer.wait()
                    raise Interrupted
                observers.before(step)
                state, measured = job.training.train_step(state, _batch(job, step), root)
                step += 1
                unseen.append(measured)
                if not (_evaluates(config, step) or step % config.log_every == 0):
                    continue
                _require_finite(job, step, unseen, writer)
                pending = {"step": step, "train_loss": float(measured["train_loss"])}
                pending |= {name: float(value) for name, value in measured.items()}
                pending |= clock.lap(step)
                pending |= _utilization(job, pending["tokens_per_s"])
            record = pending
            if _evaluates(config, step):
                try:
                    record = pending | _validate(job, state.params)
                except Interrupted:
                    save(pending=pending)
                    writer.wait()
                    raise
                for name, words in VALIDATED.items():
                    _require_number(job, step, words, record[name], writer)
                progress.console.print(shown.validation_line(record))
                metrics.add(record)
                if told := overfitting.diagnose(metrics.records, config):
                    progress.console.print(told)
                save(val_loss=record["val_loss"])
                clock.skip()
            else:
                metrics.add(record)
            observers.record(record)
            speed = "loss {train_loss:.4f}  {tokens_per_s:,.0f} tokens/s".format(**pending)
            progress.update(bar, completed=step, shown=speed)
            pending = None
    return state


def _utilization(job: TrainContext, tokens_per_s: float) -> dict[str, float]:
    """The share of the devices' peak, where it is known."""
    flops = flops_per_token(job.config.model, job.parameters) * tokens_per_s
    devices = job.training.mesh.devices.ravel()
    share = utilization(flops, devices[0].device_kind, len(devices))
    return {} if share is None else {"mfu": round(share, 4)}


def _stops(job: TrainContext, step: int) -> bool:
    """Whether somebody asked; many processes agree on it now and then, as that makes them wait."""
    if is_single_process() or step % job.config.log_every == 0:
        return any_process(job.stopping.asked)
    return False


def _evaluates(config: Config, step: int) -> bool:
    return step == config.steps or step % config.eval_every == 0


def _batch(job: TrainContext, step: int):
    """This process's part of a step's batch, on the mesh."""
    config, tokens = job.config, job.tokens.train
    shape = (config.batch_size, config.model.block_size)
    places = window_offsets(tokens, config.seed, step, *shape)
    rows = functools.partial(take_windows, tokens, block_size=config.model.block_size)
    return shard_batch(job.training.mesh, shape, lambda part: rows(places[part]))


def _require_finite(job: TrainContext, step: int, unseen: list[dict], writer) -> None:
    """What was measured since the last look is finite; it is looked at together, to wait once.

    The loss alone would not do: a step whose loss is a number can leave weights that are none.
    """
    seen = jax.device_get(unseen)
    unseen.clear()
    for at, measured in enumerate(seen, step - len(seen) + 1):
        for name, words in MEASURED.items():
            _require_number(job, at, words, measured[name], writer)


def _require_number(job: TrainContext, step: int, words: str, value: Any, writer) -> None:
    if not math.isfinite(value):
        writer.wait()  # so that the last good checkpoint is there
        raise ValueError(_not_finite(job, step, f"{words} of step {step} is {value}"))


def _not_finite(job: TrainContext, step: int, what: str) -> str:
    config, saved = job.config, list_steps(job.run_dir)
    shape = (config.batch_size, config.model.block_size)
    rows = window_offsets(job.tokens.train, config.seed, step - 1, *shape).tolist()
    return (
        f"the {what}, so the run has stopped; its last good checkpoint is "
        f"{f'step {saved[-1]}' if saved else 'none'}. The rows of the batch begin at the tokens "
        f"{rows}. Look at it: minigpt replay {job.run_dir} --step {step}."
    )


class _Clock:
    """Training time: validation and saving are not counted."""

    def __init__(self, tokens_per_step: int, step: int, elapsed: float):
        self.tokens_per_step, self.step = tokens_per_step, step
        self.last = time.perf_counter()
        self.begin = self.last - elapsed

    def elapsed(self) -> float:
        return round(self.last - self.begin, 3)

    def lap(self, step: int) -> dict[str, float]:
        now = time.perf_counter()
        speed = (step - self.step) * self.tokens_per_step / (now - self.last)
        self.last, self.step = now, step
        return {"tokens_per_s": round(speed, 1), "elapsed_s": self.elapsed()}

    def skip(self) -> None:
        now = time.perf_counter()
        self.begin += now - self.last
        self.last = now


def _validate(job: TrainContext, params) -> dict[str, float]:
    """The loss on both texts; Stopped between two batches, if somebody asks."""
    config = job.config
    sizes = {
        "batches": config.eval_batches,
        "batch_size": config.batch_size,
        "block_size": config.model.block_size,
    }
    training = job.training
    eval_step = job.stoppable(
        lambda params, batch: training.eval_step(params, training.put_batch(batch))
    )
    return {
        "train_eval_loss": estimate_loss(eval_step, params, job.tokens.train, **sizes),
        "val_loss": estimate_loss(eval_step, params, job.tokens.validation, **sizes),
    }
