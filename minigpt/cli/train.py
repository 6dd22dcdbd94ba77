"""minigpt train: train a GPT."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from minigpt.cli.common import make_console
from minigpt.cli.settings import options_of, resolve
from minigpt.config import PRESETS, Config, PresetName
from minigpt.data import is_play, is_stream

DEFAULT_PRESET: PresetName = "shakespeare-char-cpu"
if TYPE_CHECKING:
    ConfigOptions = dict[str, Any]
else:
    ConfigOptions = options_of(PRESETS[DEFAULT_PRESET])


@dataclass(frozen=True)
class TrainOptions:
    """The options that the training commands share."""

    config: Path | None = None
    """TOML file of settings, such as the config.toml of a run"""
    dropout: float | None = None
    """one rate for nanoGPT's four dropout sites: embed, attn-weights, attn-out, mlp-out"""
    resume: Literal["auto", "never"] = "auto"
    """auto: resume an unfinished run with the same settings; never: start a new run"""
    coordinator: str | None = None
    """HOST:PORT of process 0, or auto on Slurm, Open MPI, Cloud TPU or Kubernetes; None: alone"""
    num_processes: int | None = None
    """number of processes"""
    process_id: int | None = None
    """index of this process, from 0"""


@dataclass(frozen=True)
class Train(TrainOptions):
    """Train a GPT, or resume its training.

    For example:

      $ minigpt train --dropout 0.1
      $ minigpt train --data my.txt --run-dir runs/mine --steps 1000
      $ minigpt train --preset shakespeare-char --model.dtype bfloat16

    The defaults shown are those of the preset shakespeare-char-cpu. Each of these overrides the
    ones before it: --preset, --config, --dropout, single options. The same command again resumes
    an unfinished run.
    """

    preset: PresetName = DEFAULT_PRESET
    """default settings"""
    options: Annotated[ConfigOptions, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=dict
    )


def run_train(command: Train) -> None:
    """Train, or resume an unfinished run with these settings."""
    settings = train_settings(command)
    start_training(command, settings, name=command.preset)


def train_settings(command: Train) -> Config:
    """The settings of the run."""
    default = PRESETS[command.preset]
    return resolve(default, command.config, command.dropout, command.options)


def start_training(command: TrainOptions, settings: Config, *, name: str) -> None:
    """Connect to the other processes, choose a run directory unless one is set, and train."""
    from minigpt.distributed import (
        initialize_distributed,
        is_main_process,
        is_single_process,
    )
    from minigpt.run import read_streams
    from minigpt.training import choose_run_dir, train

    initialize_distributed(command.coordinator, command.num_processes, command.process_id)
    if not is_single_process() and settings.run_dir is None:
        raise ValueError(
            "run_dir=None is not allowed: several processes need the same directory. Set --run-dir."
        )
    settings = _with_absolute_paths(settings)
    fresh, console = command.resume == "never", make_console(quiet=not is_main_process())
    say = functools.partial(console.print, soft_wrap=True)
    with read_streams(settings, settings.run_dir, say) as settings:
        run_dir = settings.run_dir or choose_run_dir(Path("runs"), name, settings, fresh=fresh)
        settings = dataclasses.replace(settings, run_dir=run_dir)
        train(settings, run_dir, console, fresh=fresh)


def _with_absolute_paths(settings: Config) -> Config:
    """Make paths absolute, so that other commands find the text and the parent from any folder."""
    data, val_data = (
        paths and tuple(p if is_play(p) or is_stream(p) else p.resolve() for p in paths)
        for paths in (settings.data, settings.val_data)
    )
    parent = settings.parent and settings.parent.resolve()
    return dataclasses.replace(settings, data=data, val_data=val_data, parent=parent)
