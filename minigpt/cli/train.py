"""minigpt train: train a GPT."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from minigpt.cli.common import make_console
from minigpt.cli.settings import options_of, resolve
from minigpt.config import PRESETS, Config, PresetName
from minigpt.data import is_play

DEFAULT_PRESET: PresetName = "shakespeare-char-cpu"
if TYPE_CHECKING:
    ConfigOptions = dict[str, Any]
else:
    ConfigOptions = options_of(PRESETS[DEFAULT_PRESET])


@dataclass(frozen=True)
class TrainOptions:
    """What the commands that train share."""

    config: Path | None = None
    """a TOML file with any of the options below, such as a run's config.toml"""
    dropout: float | None = None
    """one rate for the four sites nanoGPT drops at: embed, attn-weights, attn-out, mlp-out"""
    resume: Literal["auto", "never"] = "auto"
    """auto goes on with an unfinished run of the same settings; never begins a new one"""
    coordinator: str | None = None
    """HOST:PORT of process 0 of many, or auto on Slurm, Open MPI, Cloud TPU and Kubernetes"""
    num_processes: int | None = None
    """how many processes there are"""
    process_id: int | None = None
    """which of them this is, from 0"""


@dataclass(frozen=True)
class Train(TrainOptions):
    """Train a GPT. Later wins: --preset, --config, --dropout, then single options.

    The defaults shown are those of the preset shakespeare-char-cpu.
    """

    preset: PresetName = DEFAULT_PRESET
    """where the defaults come from"""
    options: Annotated[ConfigOptions, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = (
        dataclasses.field(default_factory=dict)
    )


def run_train(command: Train) -> None:
    """Train, or resume the run that these settings began."""
    settings = train_settings(command)
    start_training(command, settings, name=command.preset)


def train_settings(command: Train) -> Config:
    """The settings of the run."""
    default = PRESETS[command.preset]
    return resolve(default, command.config, command.dropout, command.options)


def start_training(command: TrainOptions, settings: Config, *, name: str) -> None:
    """Join the other processes, choose the run directory if none is given, and train."""
    from minigpt.distributed import (
        initialize_distributed,
        is_main_process,
        is_single_process,
    )
    from minigpt.training import choose_run_dir, train

    initialize_distributed(command.coordinator, command.num_processes, command.process_id)
    if not is_single_process() and settings.run_dir is None:
        raise ValueError("run_dir=None is not allowed: many processes need one --run-dir.")
    settings = _with_absolute_paths(settings)
    fresh = command.resume == "never"
    run_dir = settings.run_dir or choose_run_dir(Path("runs"), name, settings, fresh=fresh)
    settings = dataclasses.replace(settings, run_dir=run_dir)
    train(settings, run_dir, make_console(quiet=not is_main_process()), fresh=fresh)


def _with_absolute_paths(settings: Config) -> Config:
    """So that the other commands find the text and the parent from anywhere."""
    data, parent = settings.data, settings.parent
    if data and not is_play(data):
        data = data.resolve()
    return dataclasses.replace(settings, data=data, parent=parent and parent.resolve())
