"""Functions that several commands share: load a trained model, create a console."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from minigpt.config import Checkpoint

if TYPE_CHECKING:
    from minigpt.run import RunSpec
    from minigpt.training import CompiledSteps


def make_console(*, quiet: bool = False) -> Console:
    """A console that prints text unchanged: no markup (paths can contain brackets), no wrapping."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=quiet)


def load_model(run_dir: Path, name: Checkpoint) -> tuple[RunSpec, CompiledSteps]:
    """Load a run and its trained model, for evaluation on one device."""
    from minigpt.tasks.inference import load

    model = load(run_dir, name)
    return model.run, model.compiled


def import_model(path: Path, *, quiet: bool = False) -> Path:
    """The run directory: the argument, or the import of the Hugging Face model that it names."""
    from minigpt.interop import import_once, is_huggingface_model

    if not is_huggingface_model(path):
        return path
    say = (lambda line: None) if quiet else (lambda line: print(line, flush=True))
    return import_once(path, Path("runs"), say)
