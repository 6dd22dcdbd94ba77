"""minigpt finetune: continue from a run's weights with other text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from minigpt.cli.settings import options_of, resolve
from minigpt.cli.train import TrainOptions, start_training
from minigpt.config import Config

if TYPE_CHECKING:
    FinetuneOptions = dict[str, Any]
else:
    FinetuneOptions = options_of(Config(), default="from RUN_DIR")


@dataclass(frozen=True)
class Finetune(TrainOptions):
    """Go on from the weights of RUN_DIR with other text, in a run of its own.

    The defaults are RUN_DIR's settings with a tenth of its learning rate, a quarter of its steps,
    ten validations and --patience 3. Later wins: these, --config, --dropout, then single options.
    """

    parent_run: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="RUN_DIR")]] = (
        None
    )
    """the trained run"""
    options: Annotated[FinetuneOptions, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = (
        dataclasses.field(default_factory=dict)
    )


def run_finetune(command: Finetune) -> None:
    """Fine-tune, or resume the run that these settings began."""
    settings = finetune_settings(command)
    start_training(command, settings, name=f"{settings.parent and settings.parent.name}-finetuned")


def finetune_settings(command: Finetune) -> Config:
    """The settings of the run, whose defaults follow from its parent's."""
    from minigpt.run import RunSpec, parent_dir
    from minigpt.training import finetune_defaults

    if command.parent_run is None:
        raise ValueError(
            "finetune needs a trained run as its first word: minigpt finetune RUN_DIR --data FILE."
        )
    parent, options = command.parent_run.resolve(), command.options
    if options.get("parent") and options["parent"].resolve() != parent:
        raise ValueError(
            f"parent={str(options['parent'])!r} is not allowed: it must be RUN_DIR, "
            f"{str(parent)!r}. Leave --parent out."
        )
    source = RunSpec.load(parent_dir(parent, options.get("run_dir"))).config
    default = finetune_defaults(source, parent, options.get("steps"))
    settings = resolve(default, command.config, command.dropout, options)
    settings = dataclasses.replace(settings, parent=parent)
    if settings.data is None:
        raise ValueError(
            "data=None is not allowed: it must be the text to go on with, --data FILE or one play, "
            "such as --data play:the-tempest."
        )
    return settings
