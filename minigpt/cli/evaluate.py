"""minigpt eval: measure the loss of a trained model on a whole text."""

from __future__ import annotations

import json
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
    """measure the whole of this text, named as for minigpt train; None: the run's validation
    text"""
    text_field: str | None = None
    """field with the text in .jsonl, .parquet and .arrow files; None: that of the run"""
    json: bool = False
    """print one JSON object"""
    checkpoint: Checkpoint = "last"
    """last, best (the lowest validation loss) or a step"""


def run_eval(command: Eval) -> None:
    """Print the loss as one line or as JSON."""
    from minigpt.training import evaluate_text

    spec, compiled = load_model(command.run_dir, command.checkpoint)
    config, dataset = spec.config, _load_text(command, spec)
    windows = -(-max(len(dataset.validation) - 1, 1) // config.model.block_size)
    with _progress(compiled.eval_step, -(-windows // config.batch_size)) as eval_step:
        result = evaluate_text(
            eval_step,
            compiled.state.params,
            dataset.validation,
            dataset.validation_characters,
            batch_size=config.batch_size,
            block_size=config.model.block_size,
            first_characters=len(dataset.tokenizer.decode(dataset.validation[:1])),
        )
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


def _load_text(command: Eval, spec: RunSpec) -> Dataset:
    """The run's text, or all of --data as a validation text."""
    from minigpt.data import load_dataset, load_run_dataset

    config = spec.config
    if command.data is not None:
        text_field = command.text_field or config.text_field
        kind, tokenizer = config.tokenizer, spec.tokenizer
        return load_dataset((), kind, tokenizer, val_data=command.data, text_field=text_field)
    if config.imported_from:
        raise ValueError(
            f"data=None is not allowed: {str(command.run_dir)!r} is an imported model, which has "
            "no text of its own. Set --data FILE."
        )
    dataset = load_run_dataset(config, spec.inherited_tokenizer)
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
