"""The commands: their arguments, their help, and the function that runs each."""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
from collections.abc import Sequence
from typing import Any

import tyro

from minigpt.cli.arguments import REGISTRY, complete_booleans, unknown_option, unused_words
from minigpt.cli.audit import Audit, run_audit
from minigpt.cli.chat import Chat, run_chat
from minigpt.cli.classify import Classify, run_classify
from minigpt.cli.evaluate import Eval, run_eval
from minigpt.cli.export import Export, run_export
from minigpt.cli.finetune import Finetune, run_finetune
from minigpt.cli.import_run import Import, run_import
from minigpt.cli.plan import Plan, run_plan
from minigpt.cli.replay import Replay, run_replay
from minigpt.cli.sample import Sample, run_sample
from minigpt.cli.short_help import shorten, with_joined_help
from minigpt.cli.train import Train, run_train
from minigpt.cli.uncertainty import Uncertainty, run_uncertainty

HANDLERS: dict[type, Any] = {
    Train: run_train,
    Finetune: run_finetune,
    Sample: run_sample,
    Chat: run_chat,
    Eval: run_eval,
    Replay: run_replay,
    Audit: run_audit,
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
    if name in ("", "-h", "--help", "--help-all", "help"):
        _print_commands()
        raise SystemExit(0 if name else 2)
    if name not in COMMANDS:
        raise ValueError(_unknown_command(name, words))
    command, prog = COMMANDS[name], f"minigpt {name}"
    if {"-h", "--help"} & set(words):
        return _parse_words(shorten(command), ["--help"], prog)
    if "--help-all" in words:
        return _parse_words(with_joined_help(command), ["--help"], prog)
    if message := unknown_option(COMMANDS, name, words):
        raise ValueError(message)
    parsed, unused = _parse_words(command, complete_booleans(command, words), prog)
    if unused:
        raise ValueError(unused_words(name, unused))
    return parsed


def _parse_words(command: type, words: Sequence[str], prog: str) -> Any:
    """The command, and the words that belong to none of its options."""
    return tyro.cli(
        command,
        args=words,
        prog=prog,
        config=(tyro.conf.FlagConversionOff,),
        registry=REGISTRY,
        return_unknown_args=True,
    )


def _print_commands() -> None:
    print("usage: minigpt COMMAND [OPTIONS]\n\nTrain a small GPT, and use it.\n")
    for name, command in COMMANDS.items():
        effect = (inspect.getdoc(command) or "").split("\n", 1)[0]
        print(f"  {name:<12} {effect}")
    print("\nOptions and an example of a command: minigpt COMMAND --help\nminigpt --version")


def _unknown_command(name: str, words: Sequence[str]) -> str:
    later = next((word for word in words if word in COMMANDS), None)
    if name.startswith("-") and later:
        return f"{name!r} comes before the command: minigpt {later} {name} ..."
    similar = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"did you mean {similar[0]}? " if similar else ""
    return f"{name!r} is not a command: {hint}The commands are {', '.join(COMMANDS)}."
