"""minigpt import: make a run of a Hugging Face GPT-2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from minigpt.cli.common import make_console


@dataclass(frozen=True)
class Import:
    """Make a run of a GPT-2 in the format of Hugging Face, to sample from it and to fine-tune it.

    For example:

      $ minigpt import gpt2-folder --run-dir runs/gpt2
      $ minigpt import openai-community/gpt2 --run-dir runs/gpt2

    docs/huggingface.md lists what is read of config.json. Nothing in the folder is executed.
    """

    model: tyro.conf.Positional[Path]
    """folder with config.json, model.safetensors (or its shards) and tokenizer.json (or vocab.json
    and merges.txt); or the name of a model of the hub, OWNER/MODEL, which is downloaded"""
    run_dir: Path
    """new folder for the run"""


def run_import(command: Import) -> None:
    """Write the run directory and print what it is."""
    from minigpt.interop import describe_import, import_huggingface

    console = make_console()
    run = import_huggingface(command.model, command.run_dir)
    for line in describe_import(run):
        console.print(line, soft_wrap=True)
    console.print(f"run directory: {command.run_dir}", soft_wrap=True)
