"""minigpt eval: measure the loss of a trained model on a whole text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from minigpt.cli.common import load_model
from minigpt.config import Checkpoint

if TYPE_CHECKING:
    from minigpt.data import Dataset
    from minigpt.run import RunSpec
    from minigpt.training import CompiledSteps, Evaluation


@dataclass(frozen=True)
class Eval:
    """Measure the loss of a trained model on the whole validation text, or on another text.

    For example:

      $ minigpt eval runs/shakespeare-char-cpu --checkpoint best --json
      $ minigpt eval runs/shakespeare-char-cpu --data other.txt
    """

    run_dir: tyro.conf.Positional[Path]
    """directory of a run of `minigpt train`"""
    data: tuple[Path, ...] | None = None
    """measure the whole of this text, named as for minigpt train, or the answers of conversations
    (.jsonl); None: the run's validation text"""
    text_field: str | None = None
    """field with the text in .jsonl, .parquet and .arrow files; None: that of the run"""
    json: bool = False
    """print one JSON object"""
    checkpoint: Checkpoint = "last"
    """last, best (the lowest validation loss) or a step"""


def run_eval(command: Eval) -> None:
    """Print the loss as one line or as JSON."""
    spec, compiled = load_model(command.run_dir, command.checkpoint)
    result = _evaluate(spec, compiled, _load_text(command, spec))
    step = int(compiled.state.step)
    data = None if command.data is None else [str(path) for path in command.data]
    if command.json:
        print(json.dumps(result._asdict() | {"step": step, "data": data}))
        return
    name = "validation loss" if data is None else f"loss on {', '.join(data)}"
    print(
        f"{name} {result.loss:.4f} nats per token, perplexity {result.perplexity:.3f}, "
        f"{result.bits_per_character:.4f} bits per character, over {result.tokens:,} tokens, "
        f"by the checkpoint of step {step}"
    )


def _evaluate(spec: RunSpec, compiled: CompiledSteps, dataset: Dataset) -> Evaluation:
    """The loss on the validation part of a text or of conversations."""
    from minigpt.data import Answers
    from minigpt.training import evaluate_answers, evaluate_text

    config, tokens, params = spec.config, dataset.validation, compiled.state.params
    sizes = {"batch_size": config.batch_size, "block_size": config.model.block_size}
    if isinstance(tokens, Answers):
        print(*dataset.notes, sep="\n", end="\n" if dataset.notes else "", file=sys.stderr)
        with _progress(compiled.eval_step, -(-len(tokens) // config.batch_size)) as eval_step:
            return evaluate_answers(eval_step, params, tokens, **sizes)
    windows = -(-max(len(tokens) - 1, 1) // config.model.block_size)
    with _progress(compiled.eval_step, -(-windows // config.batch_size)) as eval_step:
        return evaluate_text(
            eval_step,
            params,
            tokens,
            dataset.validation_characters,
            first_characters=len(dataset.tokenizer.decode(tokens[:1])),
            **sizes,
        )


def _load_text(command: Eval, spec: RunSpec) -> Dataset:
    """The run's text, or all of --data as a validation text."""
    from minigpt.data import (
        are_conversations,
        load_conversations,
        load_dataset,
        load_run_dataset,
    )

    config = spec.config
    if command.data is not None:
        text_field = command.text_field or config.text_field
        kind, tokenizer = config.tokenizer, spec.tokenizer
        if are_conversations(command.data, text_field):
            size = config.model.block_size
            return load_conversations((), command.data, tokenizer, spec.chat_template, size)
        return load_dataset((), kind, tokenizer, val_data=command.data, text_field=text_field)
    if config.imported_from:
        raise ValueError(
            f"data=None is not allowed: {str(command.run_dir)!r} is an imported model, which has "
            "no text of its own. Set --data FILE."
        )
    dataset = load_run_dataset(config, spec.inherited_tokenizer, spec.chat_template)
    spec.require_same_text(dataset.sha256, dataset.tokenizer)
    return dataset


@contextmanager
def _progress(function: Callable[..., Any], calls: int) -> Iterator[Callable[..., Any]]:
    """Wrap a function so that a bar on standard error, if it is a terminal, counts its calls."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluating", total=calls)

        def counted(*args: Any) -> Any:
            result = function(*args)
            bar.advance(task)
            return result

        yield counted
