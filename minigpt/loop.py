"""The run: when to step, validate, log and save; no mathematics."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from minigpt import checkpoint, corpus, plots
from minigpt.batches import batch, require_length
from minigpt.config import Config
from minigpt.evaluate import estimate
from minigpt.rundir import Run
from minigpt.sample import generate
from minigpt.tokenizer import Tokenizer, tokenizer_of
from minigpt.train_step import Training, start


def train(config: Config, run_dir: Path, console: Console) -> None:
    """Train from the first step to the last, and leave the run in run_dir."""
    text = corpus.load(config.data)
    tokenizer = tokenizer_of(config.tokenizer, text.train + text.validation)
    train_tokens, val_tokens = tokenizer.encode(text.train), tokenizer.encode(text.validation)
    require_length(train_tokens, config.model.block_size, "training text")
    require_length(val_tokens, config.model.block_size, "validation text")
    run = Run(config, tokenizer)
    training = start(config, run.vocab_size)
    run.save(run_dir)
    _announce(console, run, training, len(train_tokens), len(val_tokens), run_dir)
    with (run_dir / "metrics.jsonl").open("w") as metrics:
        state = _steps(run, training, train_tokens, val_tokens, metrics, run_dir, console)
    _sample(console, run, training._replace(state=state))
    console.print(f"run directory: {run_dir}")


def _steps(run: Run, training: Training, train_tokens, val_tokens, metrics, run_dir, console):
    config, state = run.config, training.state
    root = jax.random.key(config.seed)
    shape = (config.batch_size, config.model.block_size)
    clock = _Clock(config.batch_size * config.model.block_size)
    records = []
    with _progress(console) as progress, checkpoint.Writer(run_dir) as writer:
        bar = progress.add_task("", total=config.steps, shown="compiling")
        for step in range(config.steps):
            state, measured = training.train_step(
                state, batch(train_tokens, config.seed, step, *shape), root
            )
            done = step + 1
            last = done == config.steps
            evaluating = last or done % config.eval_every == 0
            if evaluating or done % config.log_every == 0:
                record = {"step": done, "train_loss": float(measured["train_loss"])}
                record |= clock.lap(done)
                if evaluating:
                    record |= _validate(run, training, state.params, train_tokens, val_tokens)
                    progress.console.print(_validation_line(record))
                    meta = {"val_loss": record["val_loss"]}
                    writer.save(done, checkpoint.host_arrays(state), meta)
                    clock.skip()
                _write(metrics, record)
                records.append(record)
                shown = f"loss {record['train_loss']:.4f}  {record['tokens_per_s']:,.0f} tokens/s"
                progress.update(bar, completed=done, shown=shown)
    plots.plot_losses(records, run_dir / "loss.png", run_dir.name)
    return state


class _Clock:
    """Training time: validation and saving are not counted."""

    def __init__(self, tokens_per_step: int):
        self.tokens_per_step = tokens_per_step
        self.begin = self.last = time.perf_counter()
        self.step = 0

    def lap(self, step: int) -> dict[str, float]:
        now = time.perf_counter()
        speed = (step - self.step) * self.tokens_per_step / (now - self.last)
        self.last, self.step = now, step
        return {"tokens_per_s": round(speed, 1), "elapsed_s": round(now - self.begin, 3)}

    def skip(self) -> None:
        now = time.perf_counter()
        self.begin += now - self.last
        self.last = now


def _validate(run: Run, training: Training, params, train_tokens, val_tokens) -> dict[str, float]:
    config = run.config
    sizes = {
        "batches": config.eval_batches,
        "batch_size": config.batch_size,
        "block_size": config.model.block_size,
    }
    return {
        "train_eval_loss": estimate(training.eval_step, params, train_tokens, **sizes),
        "val_loss": estimate(training.eval_step, params, val_tokens, **sizes),
    }


def _validation_line(record: dict) -> str:
    gap = record["val_loss"] - record["train_eval_loss"]
    return (
        f"step {record['step']:>6}  training text {record['train_eval_loss']:.4f}  "
        f"validation text {record['val_loss']:.4f}  gap {gap:+.4f}"
    )


def _write(metrics: TextIO, record: dict) -> None:
    metrics.write(json.dumps(record) + "\n")
    metrics.flush()


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _announce(console, run: Run, training: Training, train_size: int, val_size: int, run_dir):
    count = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(training.state.params))
    model, rates = run.config.model, run.config.model.dropout
    sites = {name: rate for name, rate in vars(rates).items() if rate}
    console.print(
        f"{count:,} parameters: {model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, "
        f"{model.block_size} tokens of context, on {jax.devices()[0].device_kind}\n"
        f"{train_size:,} tokens to train on, {val_size:,} to validate, "
        f"{run.tokenizer.vocab_size} in the vocabulary\n"
        f"dropout: {sites or 'none (--dropout 0.2 sets it)'}\nwriting {run_dir}"
    )


def _sample(console: Console, run: Run, training: Training) -> None:
    """Print a sample that begins with a new line, so any text's alphabet can prompt it."""
    if run.config.sample_tokens == 0:
        return
    prompt = run.tokenizer.encode("\n" if "\n" in (run.tokenizer.alphabet or "\n") else " ")
    ids = generate(
        training.logits,
        training.state.params,
        prompt,
        tokens=run.config.sample_tokens,
        block_size=run.config.model.block_size,
        vocab_size=run.tokenizer.vocab_size,
        temperature=0.8,
        seed=run.config.seed,
    )
    console.rule("sample")
    console.print(_decode(run.tokenizer, ids), markup=False, highlight=False)
    console.rule()


def _decode(tokenizer: Tokenizer, ids) -> str:
    return tokenizer.decode(list(ids))
