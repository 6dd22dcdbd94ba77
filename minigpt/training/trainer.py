"""The training loop: when to train, validate, log, save and stop."""

from __future__ import annotations

import dataclasses
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress

from minigpt import checkpoint
from minigpt.config import Config
from minigpt.data import (
    Answers,
    ChatTemplate,
    Dataset,
    describe_short_validation,
    load_run_dataset,
    plain_template,
    require_length,
)
from minigpt.distributed import (
    any_process,
    barrier,
    is_main_process,
    is_single_process,
    require_equal,
)
from minigpt.model import split_trained
from minigpt.run import (
    FROZEN_SHA256,
    MetricsLog,
    OpenRun,
    RunSpec,
    frozen_sha256,
    kept_chat_template,
    kept_tokenizer,
    open_run,
    read_metrics,
    read_streams,
    with_extensions,
)
from minigpt.training import console as screen
from minigpt.training import nan_guard, overfitting
from minigpt.training.context import TrainContext
from minigpt.training.early_stopping import is_finished, run_is_finished
from minigpt.training.evaluate import estimate_loss, spread_evenly
from minigpt.training.interrupt import Interrupted, InterruptHandler
from minigpt.training.observers import Observers, require_installed
from minigpt.training.optimizer import learning_rate_at
from minigpt.training.plots import plot_losses
from minigpt.training.throughput import TrainingClock, utilization
from minigpt.training.train_step import (
    TrainState,
    build_train_functions,
    initial_state,
    make_train_batch,
)
from minigpt.training.wandb_log import WandbLog


def train(
    config: Config,
    run_dir: Path,
    console: Console,
    *,
    fresh: bool = False,
    extend: bool = False,
) -> None:
    """Train to the last step, starting from the latest valid checkpoint in run_dir if there is one.

    SIGTERM and Ctrl-C save a checkpoint from which the run resumes exactly. `fresh` refuses a
    folder that contains a run; `extend` lets a run go on to more steps than it had.
    """
    require_installed(config)
    _require_parent(config)
    with (
        read_streams(config, run_dir, console.print) as config,
        InterruptHandler() as interrupt,
    ):
        config = with_extensions(config, run_dir, extend=extend)
        template = kept_chat_template(config, run_dir)
        dataset = _load_dataset(config, run_dir, template)
        for note in dataset.notes:
            console.print(note)
        if message := describe_short_validation(dataset.validation, config.model.block_size):
            console.print(message)
        if isinstance(dataset.train, Answers):
            template = template or plain_template(dataset.tokenizer)
        spec = RunSpec(config, dataset.tokenizer, dataset.sha256, template)
        settings = dataclasses.replace(config, data=None, val_data=None)
        require_equal(f"{settings} {dataset.sha256}", "settings or texts")
        compiled = build_train_functions(config, spec.vocab_size)
        context = TrainContext(
            spec=spec,
            dataset=dataset,
            compiled=compiled,
            run_dir=run_dir,
            console=console,
            interrupt=interrupt,
        )
        opened = open_run(spec, run_dir, compiled.state, console.print, fresh=fresh, extend=extend)
        with opened as run:
            if run_is_finished(run_dir, config):
                _finish(context)
                return
            try:
                Trainer(context, run).run()
            except Interrupted:
                barrier("interrupted")
                screen.print_interrupted(context, run_is_finished(run_dir, config))


def _require_parent(config: Config) -> None:
    """Frozen weights are those of the parent; new ones would be random numbers."""
    for name, value in (("freeze", config.freeze), ("lora.rank", config.model.lora.rank)):
        if value is not None and config.parent is None:
            raise ValueError(
                f"{name}={value} is not allowed without a parent, whose weights are kept: it must "
                "be None. Fine-tune a run with it: minigpt finetune RUN_DIR --data FILE."
            )


def _load_dataset(config: Config, run_dir: Path, template: ChatTemplate | None) -> Dataset:
    tokenizer = kept_tokenizer(config, run_dir)
    dataset = load_run_dataset(config, tokenizer, template)
    if isinstance(dataset.train, Answers) or isinstance(dataset.validation, Answers):
        return dataset
    remedy = "Give more text, or name a validation text of its own with --val-data."
    if config.parent is None:
        remedy = f"{remedy[:-1]}, or set a smaller --model.block-size."
    require_length(dataset.train, config.model.block_size, "training text", remedy)
    require_length(dataset.validation, config.model.block_size, "validation text", remedy)
    return dataset


def _finish(context: TrainContext) -> None:
    """Say that nothing is left to train; a process that was killed at the end may have no plot."""
    if is_main_process():
        run_dir = context.run_dir
        plot_losses(read_metrics(run_dir), run_dir / "loss.png", run_dir.name)
    screen.print_finished(context)


class Trainer:
    """The training loop of one run: a method for each phase, in the order of the phases.

    `pending` is the record of the current step until it is logged. A checkpoint that is saved in a
    validation contains it, and the resumed run then starts with that validation.
    """

    def __init__(self, context: TrainContext, run: OpenRun):
        config = context.config
        self.context, self.config, self.meta = context, config, run.meta
        self.state: TrainState = initial_state(
            context.compiled, config, run.state, run.parent_state
        )
        frozen = frozen_sha256(context.run_dir, config)
        self.frozen = {FROZEN_SHA256: frozen} if frozen else {}
        self.step = int(self.state.step)
        self.root_key = jax.random.key(config.seed)
        self.pending: dict[str, Any] | None = run.meta.get("pending")
        self.unchecked_metrics: list[dict[str, Any]] = []
        self.clock = TrainingClock(
            config.batch_size * config.model.block_size, self.step, run.meta.get("elapsed_s", 0.0)
        )

    def run(self) -> None:
        """Train, then plot the losses and print a sample."""
        context = self.context
        with ExitStack() as stack:
            self.metrics = stack.enter_context(self._open_metrics())
            self.writer = stack.enter_context(self._open_writer()) if is_main_process() else None
            self.observers = stack.enter_context(self._open_observers())
            barrier("restored")
            screen.print_summary(context, self.step)
            self.train_steps()
        self.plot()
        if self.step < self.config.steps:
            screen.print_early_stop(context, self.metrics.records)
        screen.print_sample(context, self.state.params)
        context.console.print(f"run directory: {context.run_dir}")

    def _open_metrics(self) -> MetricsLog:
        """The records up to the checkpoint's step, without a pending one."""
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
            wandb_log=self._open_wandb() if self.config.wandb and is_main_process() else None,
        )

    def _open_wandb(self) -> WandbLog:
        return WandbLog(self.context.run_dir, self.config, self.context.console.print)

    def train_steps(self) -> None:
        """Train, log, validate and save until the last step."""
        with screen.progress_bar(self.context.console) as progress:
            bar = progress.add_task("", total=self.config.steps, completed=self.step, status="")
            progress.update(bar, status="compiling")
            while self.pending or not self.is_finished():
                if not self.pending:
                    self.stop_if_requested()
                    self.train_one_step()
                    if not self.is_logged():
                        continue
                    self.pending = self.collect_record()
                record = self.complete(self.pending, progress)
                self.observers.write_record(record)
                status = "loss {train_loss:.4f}  {tokens_per_s:,.0f} tokens/s".format(**record)
                progress.update(bar, completed=self.step, status=status)
                if not progress.console.is_terminal:  # where no bar moves
                    progress.console.print(f"step {self.step:>6}  {status}")
                self.pending = None
                if self.needs_validation() and not self.is_finished():
                    self.show_validation()

    def stop_if_requested(self) -> None:
        """Save a checkpoint and raise Interrupted after a signal.

        Several processes have to wait for each other to agree, so they check every
        `log_every` steps only.
        """
        if not is_single_process() and self.step % self.config.log_every:
            return
        if any_process(self.context.interrupt.requested):
            self.save()
            self.wait_for_save()
            raise Interrupted

    def train_one_step(self) -> None:
        """Run one training step; its metrics stay on the device."""
        self.observers.before_step(self.step)
        compiled = self.context.compiled
        batch = make_train_batch(compiled.mesh, self.context.dataset.train, self.config, self.step)
        train_step = compiled.train_step_at(self.config, self.step)
        self.state, metrics = train_step(self.state, batch, self.root_key)
        self.step += 1
        self.unchecked_metrics.append(metrics)

    def is_logged(self) -> bool:
        """Whether the current step gets a line in metrics.jsonl."""
        return self.needs_validation() or self.step % self.config.log_every == 0

    def needs_validation(self) -> bool:
        """Whether a validation and a checkpoint follow the current step."""
        was_last = (self.step, self.step) in self.config.extended_from
        is_last = self.step == self.config.steps
        return is_last or was_last or self.step % self.config.eval_every == 0

    def is_finished(self) -> bool:
        """Whether the current step is the last one."""
        return is_finished(self.config, self.step, self.metrics.records)

    def collect_record(self) -> dict[str, Any]:
        """The record of the current step, without a validation."""
        metrics = self.unchecked_metrics[-1]
        self.require_finite_steps()
        record = {"step": self.step, "train_loss": float(metrics["train_loss"])}
        record |= {name: float(value) for name, value in metrics.items()}
        record["learning_rate"] = learning_rate_at(self.config, self.step - 1)
        for first_step, _ in self.config.extended_from:
            if self.step > first_step:
                record["extended_from"] = first_step
        record |= self.clock.lap(self.step)
        return record | utilization(self.context, record["tokens_per_s"])

    def complete(self, record: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Log a record; at a validation step, validate first, and save afterwards."""
        if not self.needs_validation():
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

    def show_validation(self) -> None:
        """Draw the losses, and print a sample if it is time for one.

        Where the drawing cannot be written, the run goes on: it is drawn again later.
        """
        try:
            self.plot()
        except OSError as error:
            self.context.console.print(f"loss.png is not up to date: {error}")
        if self.needs_sample():
            screen.print_sample(self.context, self.state.params)
        self.clock.exclude_time_since_lap()

    def plot(self) -> None:
        """Draw the losses of all records."""
        if is_main_process():
            run_dir = self.context.run_dir
            plot_losses(self.metrics.records, run_dir / "loss.png", run_dir.name)

    def needs_sample(self) -> bool:
        """Whether a multiple of sample_every has come since the validation before this one."""
        every, last_step = self.config.sample_every, self.step - self.config.eval_every
        return every is not None and self.step // every > max(last_step, 0) // every

    def validate(self) -> dict[str, float]:
        """The losses on both texts with dropout off; after a signal, raises Interrupted."""
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
        train_loss = estimate_loss(eval_step, params, dataset.train, **sizes)
        val_loss = estimate_loss(eval_step, params, dataset.validation, **sizes)
        tokens_per_character = dataset.predicted_tokens / max(dataset.validation_characters, 1)
        record = {
            "train_eval_loss": train_loss,
            "val_loss": val_loss,
            "val_bits_per_character": val_loss / math.log(2) * tokens_per_character,
        }
        if isinstance(dataset.validation, Answers):
            indices = spread_evenly(dataset.validation, config.eval_batches * config.batch_size)
            record["val_tokens"] = dataset.validation.count_tokens(indices)
        return record

    def save(self, **extra_meta: Any) -> None:
        """Flush the metrics to disk, then start to save the state in the background."""
        self.require_finite_steps()
        self.metrics.sync()
        meta = {
            "data_sha256": self.context.spec.data_sha256,
            "metrics_crc32": self.metrics.crc32,
            "elapsed_s": self.clock.elapsed(),
            **self.frozen,
            **extra_meta,
        }
        trained, _ = split_trained(self.config, self.state.params)
        state = self.context.compiled.gather_state(self.state._replace(params=trained))
        if self.writer:
            self.writer.save(self.step, checkpoint.host_arrays(state), meta)

    def wait_for_save(self) -> None:
        """Wait until the last save is on disk."""
        if self.writer:
            self.writer.wait()

    def require_finite_steps(self) -> None:
        """Check the metrics of all steps since the last check; waits for the device only once."""
        metrics = jax.device_get(self.unchecked_metrics)
        self.unchecked_metrics.clear()
        self.require_finite(self.step - len(metrics) + 1, metrics)

    def require_finite(self, first_step: int, metrics: list[dict[str, Any]]) -> None:
        """Raise ValueError for the first step with a NaN or an infinity."""
        if non_finite := nan_guard.first_non_finite(first_step, metrics):
            self.wait_for_save()  # so that the error names the last good checkpoint
            raise ValueError(nan_guard.error_message(self.context, *non_finite))
