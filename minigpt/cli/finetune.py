"""minigpt finetune: fine-tune a run on another text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from minigpt.cli.common import import_model
from minigpt.cli.settings import options_of, resolve
from minigpt.cli.train import TrainOptions, extended_run_settings, start_training
from minigpt.config import Config

DEFAULTS = {
    "": "that of RUN_DIR",
    "data": "required",
    "run_dir": "runs/NAME-finetuned, where NAME is that of RUN_DIR",
    "parent": "RUN_DIR",
    "parent_checkpoint": "last",
    "mesh": "None",
    "steps": "a quarter of RUN_DIR's",
    "eval_every": "a tenth of the steps",
    "patience": "3",
    "tensorboard": "false",
    "profile_steps": "0",
    "freeze": "None",
    "model.lora.rank": "None",
    "model.lora.alpha": "the rank",
    "model.lora.targets": "qkv,out",
    "model.dropout.lora": "0.0",
    "optim.learning_rate": "a tenth of RUN_DIR's; with LoRA, RUN_DIR's",
    "optim.min_learning_rate": "that of RUN_DIR scaled alike, or a tenth of the learning rate",
    "optim.warmup_steps": "that of RUN_DIR, but at most a tenth of the steps",
}

ARGUMENT = tyro.conf.arg(metavar="RUN_DIR", help_behavior_hint="(required)")
if TYPE_CHECKING:
    FinetuneOptions = dict[str, Any]
else:
    FinetuneOptions = options_of(Config(), DEFAULTS)


@dataclass(frozen=True)
class Finetune(TrainOptions):
    """Fine-tune the run in RUN_DIR, or a model of Hugging Face, on another text, to a new run.

    For example:

      $ minigpt finetune runs/shakespeare-char-cpu --data play:the-tempest
      $ minigpt finetune runs/mine --data my.txt --dropout 0 --run-dir runs/tuned
      $ minigpt finetune gpt2-folder --data my.txt
      $ minigpt finetune gpt2-folder --data my.txt --lora-rank 8 --lora-dropout 0.05
      $ minigpt finetune gpt2-folder --data examples.jsonl --run-dir runs/tuned

    Conversations in JSON lines (docs/huggingface.md) are learned by their answers only; see
    minigpt chat.

    The defaults are the settings of RUN_DIR, but a tenth of its learning rate, a quarter of its
    steps, ten validations and --patience 3. Each of these overrides the ones before it: defaults,
    --config, --dropout, single options.
    """

    parent_run: tyro.conf.Positional[Annotated[Path | None, ARGUMENT]] = None
    """directory of the run to fine-tune, or a model as for minigpt import, which is imported to
    runs/NAME-imported"""
    options: Annotated[FinetuneOptions, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=dict
    )


def run_finetune(command: Finetune) -> None:
    """Fine-tune, or resume an unfinished run with these settings."""
    name = ""
    if command.parent_run is not None:
        name = command.parent_run.resolve().name
        command = dataclasses.replace(command, parent_run=import_model(command.parent_run))
    settings = finetune_settings(command)
    start_training(command, settings, name=f"{name}-finetuned")


def finetune_settings(command: Finetune) -> Config:
    """The settings of the run; the defaults follow from the parent's settings."""
    from minigpt.run import RunSpec, parent_dir
    from minigpt.training import finetune_defaults

    if command.parent_run is None:
        raise ValueError(
            "RUN_DIR is missing: name the run to fine-tune, as in minigpt finetune RUN_DIR --data "
            "FILE."
        )
    parent, options = command.parent_run.resolve(), command.options
    if options.get("parent") and options["parent"].resolve() != parent:
        raise ValueError(
            f"parent={str(options['parent'])!r} is not allowed: it must be RUN_DIR, "
            f"{str(parent)!r}. Leave --parent out."
        )
    source = RunSpec.load(parent_dir(parent, options.get("run_dir"))).config
    default = finetune_defaults(source, parent, options.get("steps"))
    if command.extend:
        default = extended_run_settings(options)
    settings = resolve(default, command.config, command.dropout, options)
    if settings.model.lora.rank is not None and not command.extend:
        default = finetune_defaults(source, parent, options.get("steps"), lora=True)
        settings = resolve(default, command.config, command.dropout, options)
    settings = dataclasses.replace(settings, parent=parent)
    if settings.data is None:
        raise ValueError(
            "data=None is not allowed: it must be the text to fine-tune on. Set --data FILE, or "
            "one play, such as --data play:the-tempest."
        )
    return settings
