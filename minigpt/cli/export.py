"""minigpt export: write a trained model for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from minigpt.config import Checkpoint


@dataclass(frozen=True)
class Export:
    """Write the parameters of a trained model, without the optimizer, for other programs.

    For example:

      $ minigpt export runs/shakespeare-char-cpu --format safetensors --checkpoint best
      $ minigpt export runs/shakespeare-char-cpu --format huggingface --out my-gpt2

    docs/checkpoints.md lists the names of the arrays, docs/huggingface.md the files of the folder.
    """

    run_dir: tyro.conf.Positional[Path]
    """directory of a run of `minigpt train`"""
    format: Literal["safetensors", "huggingface"] = "safetensors"
    """safetensors: one file with float32 arrays under plain names, and the settings as metadata;
    huggingface: a folder that transformers loads, as a GPT-2 or, with rotary positions, as a Llama,
    with its tokenizer"""
    out: Path | None = None
    """new file or folder to write; None: the name of RUN_DIR and .safetensors or -huggingface, in
    the current folder"""
    checkpoint: Checkpoint = "last"
    """last, best (the lowest validation loss) or a step"""


def run_export(command: Export) -> None:
    """Write the file or the folder and print its name."""
    from minigpt.interop import export_huggingface, export_safetensors
    from minigpt.run import RunSpec
    from minigpt.tasks.inference import choose_step

    run_dir, is_folder = command.run_dir, command.format == "huggingface"
    ending = "-huggingface" if is_folder else ".safetensors"
    out = command.out or Path(f"{run_dir.resolve().name}{ending}")
    step = choose_step(run_dir, RunSpec.load(run_dir).config, command.checkpoint)
    if is_folder:
        step, messages = export_huggingface(run_dir, out, step)
        print(*messages, sep="\n", end="\n" if messages else "")
    else:
        step = export_safetensors(run_dir, out, step)
    print(f"wrote the parameters of step {step} to {out}")
