"""The words of the command line: numbers, booleans, and hints for options that do not exist."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import pathlib
import types
import typing
from collections.abc import Sequence
from typing import Any

import tyro

_POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]
REGISTRY = tyro.constructors.ConstructorRegistry()
# Names of other trainers.
SYNONYMS = {
    **{"lr": "learning-rate", "min-lr": "min-learning-rate", "wd": "weight-decay"},
    **{"max-iters": "steps", "max-steps": "steps", "epochs": "steps", "num-train-epochs": "steps"},
    **{"context-length": "block-size", "max-seq-length": "block-size", "n-ctx": "block-size"},
    **{"gradient-accumulation-steps": "accumulate", "max-new-tokens": "tokens"},
    **{"out-dir": "run-dir", "output-dir": "run-dir", "pdrop": "dropout"},
}
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@REGISTRY.primitive_rule
def _integer(info: Any) -> Any:
    """Integers, also as 1e6 or 10_000."""
    return _rule(info, int, "INT", _parse_integer)


@REGISTRY.primitive_rule
def _boolean(info: Any) -> Any:
    return _rule(info, bool, "{true,false}", _parse_boolean)


@REGISTRY.primitive_rule
def _optional(info: Any) -> Any:
    """A number, a text or a path that may be None: the help shows INT, not {None}|INT."""
    kinds = [kind for kind in typing.get_args(info.type) if kind is not type(None)]
    is_optional = info.type_origin in (typing.Union, types.UnionType) and len(kinds) == 1
    if not is_optional or kinds[0] not in (int, float, str, pathlib.Path):
        return None
    kind = kinds[0]
    name = "PATH" if kind is pathlib.Path else {int: "INT", float: "FLOAT"}.get(kind, "TEXT")
    parse = _parse_integer if kind is int else kind
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=name,
        instance_from_str=lambda words: None if words[0] == "None" else parse(words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def _rule(info: Any, kind: type, metavar: str, parse: Any) -> Any:
    if info.type is not kind:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: parse(words[0]),
        is_instance=lambda value: type(value) is kind,
        str_from_instance=lambda value: [str(value)],
    )


def _parse_integer(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        pass
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"{word} is not an integer")
    return int(number)


def _parse_boolean(word: str) -> bool:
    if word.lower() not in BOOLEANS:
        raise ValueError(f"{word} is neither true nor false")
    return BOOLEANS[word.lower()]


def option_types(command: Any, prefix: str = "") -> dict[str, Any]:
    """The type of every option of a command, by its name without the two dashes."""
    options: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        kind, *extras = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
        if _POSITIONAL in extras:
            continue
        is_unnamed = any(getattr(extra, "name", None) == "" for extra in extras)
        option = prefix if is_unnamed else prefix + name.replace("_", "-")
        for extra in extras:
            if getattr(extra, "prefix_name", None) is False:
                option = extra.name
        if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
            options |= option_types(kind, option and option + ".")
        else:
            options[option] = kind
    return options


def complete_booleans(command: Any, words: Sequence[str]) -> list[str]:
    """Spell out `--json` as `--json true`, and `--no-json` as `--json false`."""
    booleans = {f"--{name}" for name, kind in option_types(command).items() if kind is bool}
    hints = typing.get_type_hints(command, include_extras=True).values()
    takes_words = any(_POSITIONAL in typing.get_args(hint) for hint in hints)
    complete = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        positive = word.replace("--no-", "--", 1)
        is_alone = following == "" or following.startswith("--") or takes_words
        if word in booleans and is_alone and following.lower() not in BOOLEANS:
            complete += [word, "true"]
        elif word not in booleans and positive in booleans:
            complete += [positive, "false"]
        else:
            complete.append(word)
    return complete


def unknown_option(commands: dict[str, Any], command: str, words: Sequence[str]) -> str | None:
    """What is wrong with the first option that the command does not have; None if it has all."""
    options = option_types(commands[command])
    flags = {f"no-{name}" for name, kind in options.items() if kind is bool}
    for word in words:
        name = word.removeprefix("--").split("=")[0].replace("_", "-")
        if word.startswith("--") and name not in {*options, *flags, "help", "help-all"}:
            return f"{word!r} is not an option of minigpt {command}" + _hint(
                name, command, commands
            )
    return None


def _hint(name: str, command: str, commands: dict[str, Any]) -> str:
    """Which option may be meant, or which command has it."""
    if meant := similar_names(name, list(option_types(commands[command])), 0.85):
        return f": did you mean {' or '.join(f'--{option}' for option in meant[:3])}?"
    if elsewhere := [other for other, kind in commands.items() if name in option_types(kind)]:
        names = ", ".join(elsewhere)
        return f": it belongs to minigpt {names}. All its options: minigpt {command} --help-all."
    if meant := similar_names(name, list(option_types(commands[command])), 0.6):
        return f": did you mean --{meant[0]}?"
    return f". All its options: minigpt {command} --help-all."


def similar_names(name: str, known: Sequence[str], cutoff: float) -> list[str]:
    """The known dotted names that may be meant: with the same end, or a similar one."""
    last = name.rsplit(".", 1)[-1]
    last = SYNONYMS.get(last.replace("_", "-"), last)
    ends = {other: other.rsplit(".", 1)[-1].replace("_", "-") for other in known}
    if same := [other for other, end in ends.items() if end == last.replace("_", "-")]:
        return same
    if similar := difflib.get_close_matches(name, known, 1, cutoff):
        return similar
    best = difflib.get_close_matches(last.replace("_", "-"), list(ends.values()), 1, cutoff)
    return [other for other, end in ends.items() if end in best]


def unused_words(command: str, words: Sequence[str]) -> str:
    """What is wrong with words that belong to no option."""
    option = {
        "sample": "prompt",
        "chat": "system",
        "uncertainty": "text",
        "import": "run-dir",
        "export": "out",
    }
    hint = option.get(command, "data")
    return (
        f"{words[0]!r} belongs to no option of minigpt {command}. Put an option before it, such as "
        f"--{hint} {words[0]}; all of them: minigpt {command} --help-all."
    )
