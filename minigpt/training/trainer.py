"""The training loop: when to step, validate, log, save and stop; no mathematics."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress

from minigpt import checkpoint
from minigpt.config import Config
from minigpt.data import Dataset, load_dataset, require_length
from minigpt.distributed import (
    any_process,
    barrier,
    is_main_process,
    is_single_process,
    require_equal,
)
from minigpt.run import MetricsLog, OpenRun, RunSpec, open_run, parent_tokenizer
from minigpt.training import console as screen
from minigpt.training import nan_guard, overfitting
from minigpt.training.context import TrainContext
from minigpt.training.early_stopping import is_finished, run_is_finished
from minigpt.training.evaluate import estimate_loss
from minigpt.training.interrupt import Interrupted, InterruptHandler
from minigpt.training.observers import Observers
from minigpt.training.plots import plot_losses
from minigpt.training.throughput import TrainingClock, utilization
from minigpt.training.train_step import (
    TrainState,
    build_train_functions,
    initial_state,
    make_train_batch,
)


def train(config: Config, run_dir: Path, console: Console, *, fresh: bool = False) -> None:
    """Train to the last step, from the first or from the latest valid checkpoint in run_dir.

    SIGTERM and Ctrl-C leave an exact checkpoint. `fresh` refuses a folder that holds a run.
    """
    with InterruptHandler() as interrupt:
        dataset = _load_dataset(config, run_dir)
        spec = RunSpec(config, dataset.tokenizer, dataset.sha256)
        settings = dataclasses.replace(config, data=None)
        require_equal(f"{settings} {dataset.sha256}", "settings or texts")
        compiled = build_train_functions(config, spec.vocab_size)
        context = TrainContext(spec, dataset, compiled, run_dir, console, interrupt)
        with open_run(spec, run_dir, compiled.state, console.print, fresh=fresh) as run:
            try:
                Trainer(context, run).run()
            except Interrupted:
                barrier("interrupted")
                screen.print_interrupted(context, run_is_finished(run_dir, config))


def _load_dataset(config: Config, run_dir: Path) -> Dataset:
    tokenizer = parent_tokenizer(config, run_dir)
    dataset = load_dataset(config.data, config.tokenizer, tokenizer)
    require_length(dataset.train, config.model.block_size, "training text")
    require_length(dataset.validation, config.model.block_size, "validation text")
    return dataset


class Trainer:
    """A run at work. Its methods are the phases of a run, in their order.

    `pending` is the record of a step that is made and whose validation is still to come: a stop
    during the validation leaves it in the checkpoint.
    """

    def __init__(self, context: TrainContext, run: OpenRun):
        config = context.config
        self.context, self.config, self.meta = context, config, run.meta
        self.state: TrainState = initial_state(context.compiled, run.state, run.parent_state)
        self.step = int(self.state.step)
        self.root_key = jax.random.key(config.seed)
        self.pending: dict[str, Any] | None = run.meta.get("pending")
        self.unchecked: list[dict[str, Any]] = []
        self.clock = TrainingClock(
            config.batch_size * config.model.block_size, self.step, run.meta.get("elapsed_s", 0.0)
        )

    def run(self) -> None:
        """Make all steps, then draw the losses and print a sample."""
        context = self.context
        with ExitStack() as stack:
            self.metrics = stack.enter_context(self._open_metrics())
            self.writer = stack.enter_context(self._open_writer()) if is_main_process() else None
            self.observers = stack.enter_context(self._open_observers())
            barrier("restored")
            screen.print_summary(context, self.step)
            self.train_steps()
        if is_main_process():
            plot_losses(self.metrics.records, context.run_dir / "loss.png", context.run_dir.name)
        screen.print_sample(context, self.state.params)
        context.console.print(f"run directory: {context.run_dir}")

    def _open_metrics(self) -> MetricsLog:
        """The records up to the checkpoint's step, without the one that is pending there."""
        last_step = self.step - 1 if self.pending else self.step
        return MetricsLog(
            self.context.run_dir,
            last_step,
            self.meta.get("metrics_crc32"),
            self.context.console.print,
            writes=is_main_process(),
        )

    def _open_writer(self) -> checkpoint.CheckpointWriter:
        return checkpoint.CheckpointWriter(self.context.run_dir, self.config.keep_checkpoints)

    def _open_observers(self) -> Observers:
        return Observers(
            self.context.run_dir,
            self.step,
            tensorboard=self.config.tensorboard and is_main_process(),
            profile_steps=self.config.profile_steps if is_main_process() else 0,
        )

    def train_steps(self) -> None:
        """Steps, records, validations and checkpoints up to the last step."""
        with screen.progress_bar(self.context.console) as progress:
            bar = progress.add_task("", total=self.config.steps, completed=self.step, status="")
            progress.update(bar, status="compiling")
            while self.pending or not is_finished(self.config, self.step, self.metrics.records):
                if not self.pending:
                    self.stop_if_asked()
                    self.make_step()
                    if not self.is_recorded():
                        continue
                    self.pending = self.measure()
                record = self.complete(self.pending, progress)
                self.observers.record(record)
                status = "loss {train_loss:.4f}  {tokens_per_s:,.0f} tokens/s".format(**record)
                progress.update(bar, completed=self.step, status=status)
                self.pending = None

    def stop_if_asked(self) -> None:
        """Save and raise Interrupted if a signal asked for it.

        Many processes agree on it only at the steps of the log, as agreeing makes them wait.
        """
        if not is_single_process() and self.step % self.config.log_every:
            return
        if any_process(self.context.interrupt.asked):
            self.save()
            self.wait_for_save()
            raise Interrupted

    def make_step(self) -> None:
        """One step of training; what it measures stays on the device."""
        self.observers.before(self.step)
        compiled = self.context.compiled
        batch = make_train_batch(compiled.mesh, self.context.dataset.train, self.config, self.step)
        self.state, measured = compiled.train_step(self.state, batch, self.root_key)
        self.step += 1
        self.unchecked.append(measured)

    def is_recorded(self) -> bool:
        """Whether the step has a line in metrics.jsonl."""
        return self.is_validated() or self.step % self.config.log_every == 0

    def is_validated(self) -> bool:
        """Whether a validation and a checkpoint follow the step."""
        return self.step == self.config.steps or self.step % self.config.eval_every == 0

    def measure(self) -> dict[str, Any]:
        """The record of the step just made, without a validation."""
        measured = self.unchecked[-1]
        self.require_finite_steps()
        record = {"step": self.step, "train_loss": float(measured["train_loss"])}
        record |= {name: float(value) for name, value in measured.items()}
        record |= self.clock.lap(self.step)
        return record | utilization(self.context, record["tokens_per_s"])

    def complete(self, record: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Log a record; validate and save first, where that is due."""
        if not self.is_validated():
            self.metrics.add(record)
            return record
        try:
            record = record | self.validate()
        except Interrupted:
            self.save(pending=record)
            self.wait_for_save()
            raise
        self.require_finite(self.step, [record])
        progress.console.print(screen.validation_line(record))
        self.metrics.add(record)
        if message := overfitting.diagnose(self.metrics.records, self.config):
            progress.console.print(message)
        self.save(val_loss=record["val_loss"])
        self.clock.exclude_time_since_lap()
        return record

    def validate(self) -> dict[str, float]:
        """The loss of both texts, dropout off; raises Interrupted between two batches."""
        config, compiled, dataset = self.config, self.context.compiled, self.context.dataset
        sizes = {
            "batches": config.eval_batches,
            "batch_size": config.batch_size,
            "block_size": config.model.block_size,
        }
        eval_step = self.context.interruptible(
            lambda params, batch: compiled.eval_step(params, compiled.put_batch(batch))
        )
        params = self.state.params
        return {
            "train_eval_loss": estimate_loss(eval_step, params, dataset.train, **sizes),
            "val_loss": estimate_loss(eval_step, params, dataset.validation, **sizes),
        }

    def save(self, **more: Any) -> None:
        """Start a save of the state; the metrics are on disk before it."""
        self.require_finite_steps()
        self.metrics.sync()
        meta = {
            "data_sha256": self.context.spec.data_sha256,
            "metrics_crc32": self.metrics.crc32,
            "elapsed_s": self.clock.elapsed(),
            **more,
        }
        state = self.context.compiled.gathered(self.state)  # by all processes together
        if self.writer:
            self.writer.save(self.step, checkpoint.host_arrays(state), meta)

    def wait_for_save(self) -> None:
        """Return when the last save is on disk."""
        if self.writer:
            self.writer.wait()

    def require_finite_steps(self) -> None:
        """Check what was measured since the last check, together: the device is waited for once."""
        measurements = jax.device_get(self.unchecked)
        self.unchecked.clear()
        self.require_finite(self.step - len(measurements) + 1, measurements)

    def require_finite(self, first_step: int, measurements: list[dict[str, Any]]) -> None:
        """Stop the run at the first step with a NaN or an infinity."""
        if non_finite := nan_guard.first_non_finite(first_step, measurements):
            self.wait_for_save()  # so that the error can name the last good checkpoint
            raise ValueError(nan_guard.describe(self.context, *non_finite))
