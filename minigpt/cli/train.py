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
    extend: bool = False
    """go on with the run in --run-dir to more --steps; the other settings are those of the run"""
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
    if command.extend and command.preset == DEFAULT_PRESET:
        default = extended_run_settings(command.options)
    return resolve(default, command.config, command.dropout, command.options)


def extended_run_settings(options: dict[str, Any]) -> Config:
    """The settings of the run to extend, which are the defaults then."""
    from minigpt.run import RunSpec

    if options.get("run_dir") is None:
        raise ValueError(
            "run_dir=None is not allowed with --extend: it must be the run to go on with. Set "
            "--run-dir."
        )
    return RunSpec.load(options["run_dir"]).config


def start_training(command: TrainOptions, settings: Config, *, name: str) -> None:
    """Connect to the other processes, choose a run directory unless one is set, and train."""
    from minigpt.distributed import initialize_distributed, is_main_process
    from minigpt.training import start_training

    initialize_distributed(command.coordinator, command.num_processes, command.process_id)
    console = make_console(quiet=not is_main_process())
    start_training(
        settings, name=name, resume=command.resume, extend=command.extend, console=console
    )
