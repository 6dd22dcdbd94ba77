"""What a run shows of itself while it goes."""

from __future__ import annotations

from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from minigpt import checkpoint
from minigpt.model import generate_ids
from minigpt.training.context import TrainContext


def print_summary(context: TrainContext, step: int) -> None:
    """The model, the text, dropout and the folder."""
    count, mesh = context.parameter_count, context.compiled.mesh
    model, rates = context.config.model, context.config.model.dropout
    sites = {name: rate for name, rate in vars(rates).items() if rate}
    parent = f", with the weights of {context.config.parent}" if context.config.parent else ""
    context.console.print(
        f"{count:,} parameters: {model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, "
        f"{model.block_size} tokens of context, on {_devices(mesh)}\n"
        f"{len(context.dataset.train):,} tokens to train on, "
        f"{len(context.dataset.validation):,} to validate, "
        f"{context.tokenizer.vocab_size} in the vocabulary\n"
        f"dropout: {sites or 'none (--dropout 0.2 sets it)'}\n"
        f"{f'going on from step {step} in' if step else 'writing'} {context.run_dir}{parent}"
    )


def _devices(mesh) -> str:
    """Such as "cpu", or "8 of 8 TPU v4: data=8, fsdp=1, tensor=1"."""
    kind, count = mesh.devices.flat[0].device_kind, jax.device_count()
    if count == 1:
        return kind
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return f"{mesh.size} of {count} {kind}: {axes}"


def progress_bar(console: Console) -> Progress:
    """The bar."""
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=console,
    )


def validation_line(record: dict[str, Any]) -> str:
    """Both texts and the gap between them."""
    gap = record["val_loss"] - record["train_eval_loss"]
    return (
        f"step {record['step']:>6}  training text {record['train_eval_loss']:.4f}  "
        f"validation text {record['val_loss']:.4f}  gap {gap:+.4f}"
    )


def print_sample(context: TrainContext, params: Any) -> None:
    """Print a sample that begins with a new line, or with the first character of the alphabet."""
    tokenizer = context.tokenizer
    if context.config.sample_tokens == 0:
        return
    alphabet = tokenizer.alphabet or "\n"
    prompt = tokenizer.encode("\n" if "\n" in alphabet else alphabet[0])
    ids = generate_ids(
        context.interruptible(context.compiled.logits),
        params,
        prompt,
        tokens=context.config.sample_tokens,
        block_size=context.config.model.block_size,
        vocab_size=tokenizer.vocab_size,
        temperature=0.8,
        seed=context.config.seed,
    )
    text = tokenizer.decode(list(ids))
    context.console.rule("sample")
    context.console.print(text, markup=False, emoji=False, highlight=False)
    context.console.rule()


def print_interrupted(context: TrainContext, is_finished: bool) -> None:
    """Say at which step a run has stopped, and how to resume it."""
    step = checkpoint.list_steps(context.run_dir)[-1]
    then = "the run is finished" if is_finished else "the same command goes on from there"
    context.console.print(f"stopped at step {step}; {then}")
