"""What a run prints: its summary, progress, validations, sample and interruption."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment, Segments

from minigpt import checkpoint
from minigpt.data import Answers, special_tokens
from minigpt.model import default_prompt, generate_ids
from minigpt.training.context import TrainContext
from minigpt.training.dropout_schedule import describe_dropout
from minigpt.training.optimizer import learning_rate_at


def print_summary(context: TrainContext, step: int) -> None:
    """Print the model, the size of the text, the dropout rates and the run directory."""
    config, model = context.config, context.config.model
    parent = f", initial weights from {config.parent}" if config.parent else ""
    context.console.print(
        f"{context.parameter_count:,} parameters{_describe_trained(context)}: "
        f"{model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, "
        f"context {model.block_size} tokens, on "
        f"{_describe_devices(context.compiled.mesh)}\n"
        f"{_describe_data(context)}, vocabulary {context.tokenizer.vocab_size}\n"
        f"dropout: {describe_dropout(config)}\n"
        f"{f'resuming from step {step} in' if step else 'writing to'} {context.run_dir}{parent}"
    )
    if config.optim.warmup_steps >= config.steps:
        last = learning_rate_at(config, config.steps - 1)
        context.console.print(
            f"the warm-up of {config.optim.warmup_steps} steps is not over at the last step: the "
            f"learning rate reaches {last:.2g} of {config.optim.learning_rate:.2g}. For a shorter "
            f"one: --optim.warmup-steps {config.steps // 10}"
        )
    for first_step, steps in config.extended_from[-1:]:
        context.console.print(
            f"extended at step {first_step} from {steps} steps to {config.steps}; the schedules "
            f"are those of {config.steps} steps from there"
        )


def _describe_data(context: TrainContext) -> str:
    """The sizes of both parts; of conversations, also the template."""
    train, validation = context.dataset.train, context.dataset.validation
    if not (isinstance(train, Answers) and isinstance(validation, Answers)):
        return f"{len(train):,} training tokens, {len(validation):,} validation tokens"
    template = context.spec.chat_template
    name = "plain" if template is None or template.is_plain else "the model's"
    return (
        f"{len(train):,} training conversations with {train.answer_tokens:,} tokens of answers, "
        f"{len(validation):,} validation conversations with {validation.answer_tokens:,}, "
        f"chat template: {name}"
    )


def _describe_trained(context: TrainContext) -> str:
    """How many parameters are trained, and why not the others."""
    freeze, lora = context.config.freeze, context.config.model.lora
    reasons = [f"LoRA of rank {lora.rank} in {lora.targets}"] if lora.rank is not None else []
    if freeze is not None:
        reasons.append(f"the embeddings and the first {freeze} layers are frozen")
    count = f", {context.trained_parameter_count:,} of them trained ({'; '.join(reasons)})"
    return count if reasons else ""


def _describe_devices(mesh: Mesh) -> str:
    """Such as "cpu", or "8 of 8 TPU v4: data=8, fsdp=1, tensor=1"."""
    kind, device_count = mesh.devices.flat[0].device_kind, jax.device_count()
    if device_count == 1:
        return kind
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return f"{mesh.size} of {device_count} {kind}: {axes}"


def progress_bar(console: Console) -> Progress:
    """A progress bar with a field `status`."""
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=console,
    )


def validation_line(record: dict[str, Any]) -> str:
    """The losses on both texts, and the gap between them."""
    gap = record["val_loss"] - record["train_eval_loss"]
    return (
        f"step {record['step']:>6}  loss: training text {record['train_eval_loss']:.4f}  "
        f"validation text {record['val_loss']:.4f}  gap {gap:+.4f}"
    )


def print_sample(context: TrainContext, params: Any) -> None:
    """Print a sample that continues the default prompt, or answers a validation conversation."""
    config, tokenizer, console = context.config, context.tokenizer, context.console
    if config.sample_tokens == 0:
        return
    validation = context.dataset.validation
    prompt, ids = tokenizer.encode(default_prompt(tokenizer)), list[int]()
    if isinstance(validation, Answers):
        prompt = validation.first_prompt
    add = context.interruptible(ids.extend)
    for chunk in generate_ids(
        context.compiled.generation,
        params,
        [prompt],
        tokens=config.sample_tokens,
        vocab_size=tokenizer.vocab_size,
        temperature=0.8,
        seeds=[config.seed],
    ):
        add(chunk[0].tolist())
    line = "─" if console.encoding.startswith("utf") else "-"
    console.rule("sample", characters=line)
    # As a segment, the text is neither wrapped nor are its tabs expanded.
    text = tokenizer.decode(ids)
    if isinstance(validation, Answers) and (template := context.spec.chat_template):
        end = template.end_of_turn(special_tokens(tokenizer))
        text = tokenizer.decode(prompt) + text.partition(end)[0]
    console.print(Segments([Segment(text + "\n")]), crop=False)
    console.rule(characters=line)


def print_early_stop(context: TrainContext, records: list[dict[str, Any]]) -> None:
    """Print why a run ends before its last step, and which checkpoint is the best."""
    best = min((r for r in records if "val_loss" in r), key=lambda record: record["val_loss"])
    context.console.print(
        f"early stopping at step {records[-1]['step']} of {context.config.steps}: the last "
        f"{context.config.patience} validations (--patience) have not lowered the validation loss. "
        f"The best checkpoint is that of step {best['step']}, with {best['val_loss']:.4f}; "
        "minigpt sample takes it"
    )


def print_finished(context: TrainContext) -> None:
    """Print that nothing is left to train, and what can be done with the run."""
    run_dir, steps = context.run_dir, context.config.steps
    step = checkpoint.list_steps(run_dir)[-1]
    stopped = f", where early stopping ended it (--patience {context.config.patience})"
    context.console.print(
        f"the run in {run_dir} is finished: it is at step {step} of {steps}"
        f"{stopped if step < steps else ''}. To train it further: minigpt train --run-dir {run_dir}"
        f" --steps {2 * steps} --extend. For a new run: another --run-dir. For text: minigpt "
        f"sample {run_dir}"
    )


def print_interrupted(context: TrainContext, is_finished: bool) -> None:
    """Print the step at which a run has stopped, and how to resume it."""
    step = checkpoint.list_steps(context.run_dir)[-1]
    advice = "the run is finished" if is_finished else "repeat the command to resume"
    context.console.print(f"stopped at step {step}; {advice}")
