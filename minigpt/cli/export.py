"""minigpt export: write a trained model for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from minigpt.cli.common import CheckpointName


@dataclass(frozen=True)
class Export:
    """Write the parameters of a trained model, without the optimizer, for other programs.

    For example:

      $ minigpt export runs/shakespeare-char-cpu --format safetensors --checkpoint best

    docs/checkpoints.md lists the names of the arrays.
    """

    run_dir: tyro.conf.Positional[Path]
    """directory of a run of `minigpt train`"""
    format: Literal["safetensors"] = "safetensors"
    """safetensors: one file with float32 arrays under plain names, and the settings as metadata"""
    out: Path | None = None
    """new file to write; None: the name of RUN_DIR and .safetensors, in the current folder"""
    checkpoint: CheckpointName = "last"
    """best: the checkpoint with the lowest validation loss"""


def run_export(command: Export) -> None:
    """Write the file and print its name."""
    from minigpt import checkpoint
    from minigpt.interop import export_safetensors

    run_dir = command.run_dir
    out = command.out or Path(f"{run_dir.resolve().name}.{command.format}")
    step = checkpoint.best_step(run_dir) if command.checkpoint == "best" else None
    step = export_safetensors(run_dir, out, step)
    print(f"wrote the parameters of step {step} to {out}")
