"""minigpt eval: measure the loss of a trained model on the whole validation text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from minigpt.cli.common import CheckpointName, load_model


@dataclass(frozen=True)
class Eval:
    """Measure the loss of a trained model on the whole validation text.

    For example:

      $ minigpt eval runs/shakespeare-char-cpu --checkpoint best --json
    """

    run_dir: tyro.conf.Positional[Path]
    """directory of a run of `minigpt train`"""
    json: bool = False
    """print one JSON object"""
    checkpoint: CheckpointName = "last"
    """best: the checkpoint with the lowest validation loss"""


def run_eval(command: Eval) -> None:
    """Print the loss as one line or as JSON."""
    from minigpt.data import load_dataset
    from minigpt.training import evaluate_text

    spec, compiled = load_model(command.run_dir, command.checkpoint)
    config = spec.config
    dataset = load_dataset(config.data, config.tokenizer, spec.inherited_tokenizer)
    spec.require_same_text(dataset.sha256, dataset.tokenizer)
    result = evaluate_text(
        compiled.eval_step,
        compiled.state.params,
        dataset.validation,
        dataset.validation_characters,
        batch_size=config.batch_size,
        block_size=config.model.block_size,
    )
    if command.json:
        print(json.dumps(result._asdict()))
        return
    print(
        f"validation loss {result.loss:.4f} nats per token, perplexity {result.perplexity:.3f}, "
        f"{result.bits_per_character:.4f} bits per character, over {result.tokens:,} tokens"
    )
