"""Write docs/commands.md: python tests/command_page.py > docs/commands.md."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from tabulate import tabulate

from minigpt.cli.commands import COMMANDS
from minigpt.cli.finetune import DEFAULTS
from minigpt.cli.sampling import SamplingOptions
from minigpt.cli.settings import field_docs, options_of
from minigpt.cli.train import DEFAULT_PRESET, ConfigOptions, TrainOptions
from minigpt.config import PRESETS

INTRODUCTION = """\
# The commands of minigpt

Every command with its options. `minigpt COMMAND --help` prints the same: tests/command_page.py
writes this page from the options' definitions, and a test compares the two. Booleans are `true` or
`false`; a flag alone is `true`, and `--no-NAME` is `false`. Numbers may be written `1e6` or
`10_000`. None as a default: the option is not set. A mistake is one line on standard error and exit
code 2.
"""
SETTINGS_TEXT = f"""\
[`minigpt train`](#minigpt-train), [`minigpt finetune`](#minigpt-finetune) and
[`minigpt plan`](#minigpt-plan) have these options. The same names, with `_` for `-`, are the
settings of a `--config` file in TOML and of `minigpt.config.Config`. The defaults are those of the
preset `{DEFAULT_PRESET}`.
"""
PRESETS_TEXT = "The settings in which the values of `--preset` differ.\n"
FINETUNE_TEXT = """\
Any other of the [settings of a run](#settings-of-a-run) is by default that of RUN_DIR.
"""
SAMPLING_TEXT = """\
[`minigpt sample`](#minigpt-sample) and [`minigpt chat`](#minigpt-chat) have these options.
"""
TRAINING_TEXT = """\
[`minigpt train`](#minigpt-train) and [`minigpt finetune`](#minigpt-finetune) have these options
beside the settings.
"""
TABLES = {
    "": "The run",
    "model": "The model",
    "model.dropout": "Dropout",
    "model.lora": "LoRA",
    "optim": "The optimizer",
}
SHARED = {  # the types whose options are listed once, and the section that lists them
    "SamplingOptions": "[How a token is drawn](#how-a-token-is-drawn)",
    "ConfigOptions": "[Settings of a run](#settings-of-a-run)",
    "TrainOptions": "[Resuming and processes](#resuming-and-processes)",
}
LINK_TEXTS = {"checkpoints.md": "Checkpoints", "huggingface.md": "GPT-2 and Llama"}
HEADERS = ["option", "what it does", "default", "values"]


class Option(NamedTuple):
    """An option, or an argument without a name."""

    setting: str
    """its dotted name in the settings"""
    name: str
    values: str
    default: str
    doc: str


def render() -> str:
    """The page: the commands, then the options that several commands share."""
    names = [f"[`{name}`](#minigpt-{name})" for name in COMMANDS]
    effects = [_first_line(command) for command in COMMANDS.values()]
    summary = _table(zip(names, effects, strict=True), ["command", "what it does"])
    sections = [INTRODUCTION, summary]
    sections += [_command_section(name, command) for name, command in COMMANDS.items()]
    sections += ["## Resuming and processes\n", TRAINING_TEXT, _options_table(TrainOptions)]
    sections += ["## How a token is drawn\n", SAMPLING_TEXT, _options_table(SamplingOptions)]
    sections += ["## Settings of a run\n", SETTINGS_TEXT, *_settings_tables()]
    sections += ["### The presets\n", PRESETS_TEXT, _presets_table()]
    return "\n".join(sections)


def _first_line(command: type) -> str:
    return (inspect.getdoc(command) or "").split("\n", 1)[0]


def _command_section(name: str, command: type) -> str:
    """What a command does, its examples, and the options that no other command shares."""
    doc = inspect.getdoc(command) or ""
    examples = re.findall(r"(?m)^ +\$ (.+)$", doc)
    text = re.sub(r"(?m)^For example:\n\n(?: +\$ .+\n?)+\n?", "", doc)
    block = "\n".join(["```sh", *examples, "```\n"])
    shared = list(_shared_types(command))
    inherited = set(walk_options(TrainOptions)) if "TrainOptions" in shared else set()
    own = [option for option in walk_options(command) if option not in inherited]
    parts = [f"## minigpt {name}\n", f"{_as_markdown(text.strip())}\n", block, _rows_table(own)]
    if shared:
        parts.append(
            f"It also has the options in {' and '.join(SHARED[each] for each in shared)}.\n"
        )
    if name == "finetune":
        parts += [FINETUNE_TEXT, _finetune_defaults()]
    return "\n".join(parts)


def _shared_types(command: type) -> Iterator[str]:
    """The shared types of options that a command has."""
    if issubclass(command, TrainOptions):
        yield "TrainOptions"
    for hint in typing.get_type_hints(command).values():
        if hint is SamplingOptions:
            yield "SamplingOptions"
        elif typing.is_typeddict(hint):
            yield "ConfigOptions"


def walk_options(kind: Any, setting: str = "", prefix: str = "") -> Iterator[Option]:
    """The options of a command, dataclass or TypedDict, without those of the shared types."""
    fields, docs = {}, {}
    if not typing.is_typeddict(kind):
        fields, docs = {field.name: field for field in dataclasses.fields(kind)}, field_docs(kind)
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        inner: Any = hint
        extras: list[Any] = []
        if hasattr(hint, "__metadata__"):
            inner, *extras = typing.get_args(hint)
        is_unnamed = any(getattr(extra, "name", None) == "" for extra in extras)
        path = prefix if is_unnamed else prefix + name.replace("_", "-")
        if not (dataclasses.is_dataclass(inner) or typing.is_typeddict(inner)):
            yield _describe(setting + name, path, inner, extras, docs.get(name), fields.get(name))
        elif not (is_unnamed and getattr(inner, "__name__", "") in SHARED):
            yield from walk_options(inner, f"{setting}{name}.", path and f"{path}.")


def _describe(
    setting: str, path: str, kind: Any, extras: list, doc: str | None, field: Any
) -> Option:
    name, default = f"--{path}", _default(field)
    for extra in extras:
        if getattr(extra, "prefix_name", None) is False:
            name = f"--{extra.name}"
        doc = doc or getattr(extra, "help", None)
        if hint := getattr(extra, "help_behavior_hint", None):
            default = str(hint).strip("()").removeprefix("default: ")
    if _POSITIONAL in extras:
        metavars = [extra.metavar for extra in extras if getattr(extra, "metavar", None)]
        name = metavars[0] if metavars else path.upper().replace("-", "_")
    return Option(setting, name, _values(kind), default, doc or "")


_POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]
_KINDS = {bool: "`true`, `false`", int: "integer", float: "number", str: "text", Path: "path"}


def _values(kind: Any) -> str:
    """What an option may be; that it may be None is said by its default."""
    arguments = [each for each in typing.get_args(kind) if each is not type(None)]
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if typing.get_origin(kind) is tuple:
        return "paths"
    return ", ".join(map(_values, arguments)) if arguments else _KINDS[kind]


def _default(field: Any) -> str:
    """The default of a dataclass's field."""
    if field is None or field.default is dataclasses.MISSING:
        return "required"
    return str(field.default)


def _options_table(kind: Any) -> str:
    return _rows_table(list(walk_options(kind)))


def _rows_table(options: list[Option]) -> str:
    rows = [
        [f"`{each.name}`", _as_markdown(each.doc), _default_cell(each.default), each.values]
        for each in options
    ]
    return f'<div class="options">\n\n{_table(rows, HEADERS)}\n</div>\n'  # see tables.css


def _default_cell(default: str) -> str:
    """A value in code; None, and what is said in words, as they are."""
    value = {"True": "true", "False": "false"}.get(default, default)
    is_words = value in ("None", "required") or " " in value
    return _as_markdown(value) if is_words else f"`{value}`"


def _settings_tables() -> Iterator[str]:
    """A table for each group of settings."""
    options = list(walk_options(ConfigOptions))
    for table, title in TABLES.items():
        yield f"### {title}\n"
        yield _rows_table([each for each in options if each.setting.rpartition(".")[0] == table])


def _presets_table() -> str:
    """The settings that are not the same in all presets."""
    values = [
        {option.setting: option.default for option in walk_options(options_of(config))}
        for config in PRESETS.values()
    ]
    names = {option.setting: option.name for option in walk_options(ConfigOptions)}
    rows = [
        [f"`{name}`", *(_default_cell(each[setting]) for each in values)]
        for setting, name in names.items()
        if len({each[setting] for each in values}) > 1
    ]
    return _table(rows, ["option", *(f"`{name}`" for name in PRESETS)])


def _finetune_defaults() -> str:
    """The defaults of minigpt finetune that are not those of the run it starts from."""
    names = {option.setting: option.name for option in walk_options(ConfigOptions)}
    rows = [
        [f"`{names[setting]}`", _default_cell(text)]
        for setting, text in DEFAULTS.items()
        if setting
    ]
    return _table(rows, ["option", "default of `minigpt finetune`"])


def _as_markdown(text: str) -> str:
    """Options, commands and what has a backslash in code, names of pages as links."""
    text = re.sub(r"\\[nt\\]", r"`\g<0>`", text)
    text = re.sub(r"(?<![`\w-])--[a-z][\w.-]*[a-z]", r"`\g<0>`", text)
    names = "|".join(COMMANDS)
    text = re.sub(rf"(?<!`)minigpt (?:{names})\b(?!`)", r"`\g<0>`", text)
    return re.sub(r"docs/(\w+\.md)", lambda page: f"[{LINK_TEXTS[page[1]]}]({page[1]})", text)


def _table(rows: Any, headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"


if __name__ == "__main__":
    print(render(), end="")
