"""minigpt sample: write text with a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from minigpt.cli.common import WhichCheckpoint, load_model


@dataclass(frozen=True)
class Sample:
    """Write text with a trained model."""

    run_dir: tyro.conf.Positional[Path]
    """the directory that `minigpt train` wrote"""
    prompt: str | None = None
    """the text to go on from; unset begins with a new line"""
    tokens: int = 500
    temperature: float = 1.0
    """0 takes the likeliest token"""
    top_k: int | None = None
    """draw from the k likeliest tokens only"""
    top_p: float | None = None
    """draw from the fewest tokens that hold this probability"""
    seed: int = 0
    checkpoint: WhichCheckpoint = "last"
    """best is that of the lowest validation loss"""


def run_sample(command: Sample) -> None:
    """Print the prompt and what follows it."""
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
