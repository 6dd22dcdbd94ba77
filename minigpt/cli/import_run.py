"""minigpt import: make a run of a Hugging Face GPT-2 or Llama, or of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from minigpt.cli.common import make_console


@dataclass(frozen=True)
class Import:
    """Make a run of a GPT-2 or a Llama of others, to sample from it and to fine-tune it.

    For example:

      $ minigpt import gpt2-folder --run-dir runs/gpt2
      $ minigpt import openai-community/gpt2 --run-dir runs/gpt2
      $ minigpt import SmolLM2-135M-Instruct.Q4_1.gguf --run-dir runs/smol --block-size 512

    docs/huggingface.md lists what is read of config.json. Nothing in the folder is executed.
    """

    model: tyro.conf.Positional[Path]
    """folder with config.json, model.safetensors (or its shards) and tokenizer.json (or vocab.json
    and merges.txt); a GGUF file of a Llama; or the name of a model of the hub, OWNER/MODEL, which
    is downloaded"""
    run_dir: Path
    """new folder for the run"""
    block_size: int | None = None
    """a shorter context, for a model with rotary positions: it takes less memory; None: the
    model's"""


def run_import(command: Import) -> None:
    """Write the run directory and print what it is."""
    from minigpt.interop import describe_import, import_huggingface

    console = make_console()
    run = import_huggingface(command.model, command.run_dir, command.block_size)
    for line in describe_import(run):
        console.print(line, soft_wrap=True)
    console.print(f"run directory: {command.run_dir}", soft_wrap=True)
