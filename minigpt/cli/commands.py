"""The commands: their arguments, their help, and the function that runs each."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import tyro

from minigpt.cli.arguments import REGISTRY, complete_booleans, unknown_option
from minigpt.cli.classify import Classify, run_classify
from minigpt.cli.evaluate import Eval, run_eval
from minigpt.cli.export import Export, run_export
from minigpt.cli.finetune import Finetune, run_finetune
from minigpt.cli.import_run import Import, run_import
from minigpt.cli.plan import Plan, run_plan
from minigpt.cli.replay import Replay, run_replay
from minigpt.cli.sample import Sample, run_sample
from minigpt.cli.short_help import shorten
from minigpt.cli.train import Train, run_train
from minigpt.cli.uncertainty import Uncertainty, run_uncertainty

HANDLERS: dict[type, Any] = {
    Train: run_train,
    Finetune: run_finetune,
    Sample: run_sample,
    Eval: run_eval,
    Replay: run_replay,
    Plan: run_plan,
    Uncertainty: run_uncertainty,
    Classify: run_classify,
    Import: run_import,
    Export: run_export,
}
COMMANDS = {command.__name__.lower(): command for command in HANDLERS}


def run(args: Sequence[str]) -> None:
    """Run the command that the arguments name."""
    command = parse(args)
    HANDLERS[type(command)](command)


def parse(args: Sequence[str]) -> Any:
    """Parse the arguments to an instance of one of the classes in HANDLERS."""
    name, words = (args[0], args[1:]) if args else ("", [])
    if name == "--version":
        print(f"minigpt {importlib.metadata.version('dropout-jax')}")
        raise SystemExit(0)
    if name not in COMMANDS:
        return _parse_words(tuple(COMMANDS.values()), args)
    command = COMMANDS[name]
    if {"-h", "--help"} & set(words):
        return _parse_words((shorten(command),), ["--help"], prog=f"minigpt {name}")
    if "--help-all" in words:
        return _parse_words((command,), ["--help"], prog=f"minigpt {name}")
    if message := unknown_option(COMMANDS, name, words):
        raise ValueError(message)
    words = complete_booleans(command, words)
    return _parse_words((command,), words, prog=f"minigpt {name}")


def _parse_words(types: tuple[type, ...], words: Sequence[str], prog: str = "minigpt") -> Any:
    union: Any = types[0]
    for other in types[1:]:
        union |= other
    config = (tyro.conf.FlagConversionOff,)
    return tyro.cli(union, args=words, prog=prog, config=config, registry=REGISTRY)
