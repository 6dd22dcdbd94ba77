"""A small GPT in flax.nnx with dropout at every site, and its trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minigpt.tasks.inference import Checkpoint, LoadedModel


def load(run_dir: str | Path, checkpoint: Checkpoint | None = None) -> LoadedModel:
    """Load a trained model: see `minigpt.tasks.inference.load`."""
    from minigpt.tasks import inference  # here, so that `import minigpt` does not import JAX

    return inference.load(run_dir, checkpoint)
