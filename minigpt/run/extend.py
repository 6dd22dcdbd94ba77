"""Extend a run: the settings with which it goes on from its latest checkpoint to more steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from minigpt import checkpoint
from minigpt.config import Config
from minigpt.run.directory import CONFIG, RunSpec


def with_extensions(config: Config, run_dir: Path, *, extend: bool = False) -> Config:
    """The settings with the extensions of the run in run_dir; with `extend`, to config.steps.

    A run that has this many steps already is not extended again, so the same command resumes it.
    An imported run, which was not trained here, is a ValueError.
    """
    if not (run_dir / CONFIG).exists():
        if extend:
            raise ValueError(
                f"run_dir={str(run_dir)!r} is not allowed: --extend goes on with a run, and there "
                "is none. Name its directory, or leave --extend out."
            )
        return dataclasses.replace(config, extended_from=())
    saved = RunSpec.load(run_dir).config
    if saved.imported_from:
        raise ValueError(
            f"run_dir={str(run_dir)!r} is not allowed: it is an imported model, which has no "
            "training to go on with. Fine-tune it in a run of its own: minigpt finetune "
            f"{run_dir} --data FILE."
        )
    if config.steps == saved.steps:
        return dataclasses.replace(config, extended_from=saved.extended_from)
    if not extend:
        return dataclasses.replace(config, extended_from=())
    if config.steps < saved.steps:
        raise ValueError(
            f"steps={config.steps} is not allowed: the run in {str(run_dir)!r} has {saved.steps} "
            "steps, and --extend takes more. Choose more --steps, or another --run-dir without "
            "--extend."
        )
    step = max(checkpoint.list_steps(run_dir), default=0)
    earlier = [extension for extension in saved.extended_from if extension[0] < step]
    extension = step, saved.steps_at(max(step - 1, 0))
    return dataclasses.replace(config, extended_from=(*earlier, extension))
