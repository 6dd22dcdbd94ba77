"""minigpt sample: generate text with a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from minigpt.cli.common import CheckpointName, load_model


@dataclass(frozen=True)
class Sample:
    """Generate text with a trained model.

    For example:

      $ minigpt sample runs/shakespeare-char-cpu --prompt "To be" --temperature 0.8
    """

    run_dir: tyro.conf.Positional[Path]
    """directory of a run of `minigpt train`"""
    prompt: str | None = None
    """text to continue; None: a newline"""
    tokens: int = 500
    """number of tokens to generate"""
    temperature: float = 1.0
    """divisor of the logits; 0 takes the likeliest token"""
    top_k: int | None = None
    """sample only from the k likeliest tokens"""
    top_p: float | None = None
    """sample only from the fewest tokens whose probabilities sum to at least this"""
    seed: int = 0
    """the same seed gives the same text"""
    checkpoint: CheckpointName = "last"
    """best: the checkpoint with the lowest validation loss"""


def run_sample(command: Sample) -> None:
    """Print the prompt and its continuation."""
    from minigpt.model import generate_ids

    spec, compiled = load_model(command.run_dir, command.checkpoint)
    prompt = "\n" if command.prompt is None else command.prompt
    ids = generate_ids(
        compiled.logits,
        compiled.state.params,
        spec.tokenizer.encode(prompt),
        tokens=command.tokens,
        block_size=spec.config.model.block_size,
        vocab_size=spec.tokenizer.vocab_size,
        temperature=command.temperature,
        top_k=command.top_k,
        top_p=command.top_p,
        seed=command.seed,
    )
    print(prompt + spec.tokenizer.decode(list(ids)))
