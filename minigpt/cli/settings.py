"""The settings of a command: defaults, overridden by a TOML file, overridden by options.

The options of a config are parsed to a TypedDict that contains only the options on the command
line. So the command line is parsed once, and defaults are distinguished from explicit values.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

import tyro

from minigpt.cli.arguments import REGISTRY, similar_names
from minigpt.config import Config, DropoutConfig
from minigpt.data import read_text


def options_of(config: Any, defaults: Mapping[str, str] | None = None, prefix: str = "") -> Any:
    """The type of a config's options; the help shows the values of `config`, or `defaults`.

    `defaults` has texts by the option's dotted name; "" is the text of the others.
    """
    hints, docs = typing.get_type_hints(type(config)), field_docs(type(config))
    options: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not field.metadata.get("is_option", True):
            continue
        if dataclasses.is_dataclass(value):
            options[field.name] = options_of(value, defaults, f"{prefix}{field.name}.")
        else:
            default = defaults and defaults.get(prefix + field.name, defaults[""])
            hint = f"(default: {default or value})"
            argument = tyro.conf.arg(
                name=field.metadata.get("option"),
                prefix_name=False if "option" in field.metadata else None,
                help=docs.get(field.name),
                help_behavior_hint=hint,
            )
            options[field.name] = Annotated[hints[field.name], argument]
    make_type: Any = TypedDict
    return make_type(f"{type(config).__name__}Options", options, total=False)


def field_docs(config: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, and of those it inherits."""
    docs = {}
    for base in reversed(config.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_field_docs(base)
    return docs


def _own_field_docs(config: type) -> dict[str, str]:
    (definition,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, docstring in itertools.pairwise(definition.body):
        match field, docstring:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                docs[name] = " ".join(str(text).split())
    return docs


def merge(config: Any, options: dict[str, Any]) -> Any:
    """Override the values of a config that are in `options`."""
    changes = {
        name: merge(getattr(config, name), value) if isinstance(value, dict) else value
        for name, value in options.items()
    }
    return dataclasses.replace(config, **changes)


def resolve(
    default: Config, config: Path | None, dropout: float | None, options: dict[str, Any]
) -> Config:
    """The settings of a run: defaults, overridden by --config, --dropout and options in turn.

    The config.toml of a run has every setting, also where an earlier version had fewer of them.
    """
    settings = default
    if config:
        from minigpt.run import find_kept_streams

        is_whole = (config.parent / "tokenizer.json").exists()
        settings = merge(Config() if is_whole else default, _read_toml(config))
        settings = find_kept_streams(settings, config.parent)
    if dropout is not None:
        model = dataclasses.replace(settings.model, dropout=DropoutConfig.uniform(dropout))
        settings = dataclasses.replace(settings, model=model)
    return merge(settings, options)


def _read_toml(path: Path) -> dict[str, Any]:
    """Read the settings in a file and validate them like options.

    Ignores run_dir, extended_from and imported_from: the config.toml of a run has them of its own
    directory.
    """
    try:
        tables = tomllib.loads(read_text(path, "config"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"config={str(path)!r} cannot be read: {error}.") from None
    for name in ("run_dir", "extended_from", "imported_from"):
        tables.pop(name, None)
    settings = dict(_flatten(tables))
    known = dict(_flatten(dataclasses.asdict(Config())))
    for name in settings:
        if name not in known:
            raise ValueError(
                f"config={str(path)!r} is not allowed: it sets {name!r}, which is not a setting "
                f"of a file.{_suggest(name, list(known))}"
            )
    try:
        return _parse_settings(settings)
    except SystemExit:
        name = next(name for name, value in settings.items() if not _is_allowed({name: value}))
        raise ValueError(
            f"config={str(path)!r} is not allowed: it sets {name} to {settings[name]!r}. What it "
            "may be: minigpt train --help-all."
        ) from None


def _suggest(name: str, known: list[str]) -> str:
    """What may be meant by the name of an unknown setting."""
    if name in ("dropout", "preset", "resume"):
        return f" Set --{name} on the command line."
    if meant := similar_names(name, known, 0.6):
        return f" Did you mean {' or '.join(map(repr, meant))}?"
    return " The settings are the options of minigpt train --help-all from --data on."


def _is_allowed(settings: dict[str, Any]) -> bool:
    try:
        _parse_settings(settings)
    except SystemExit:
        return False
    return True


def _parse_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert values like those of options; a value that is not allowed is a SystemExit."""
    args, names = [], _option_names(Config())
    for name, value in settings.items():
        args += [
            f"--{names.get(name, name)}",
            *(map(str, value) if isinstance(value, list) else [str(value)]),
        ]
    config = (tyro.conf.FlagConversionOff,)
    with contextlib.redirect_stderr(io.StringIO()):
        return tyro.cli(options_of(Config()), args=args, config=config, registry=REGISTRY)


def _option_names(config: Any, prefix: str = "") -> dict[str, str]:
    """The options that have a name of their own, by the dotted name of the setting."""
    names = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names |= _option_names(value, f"{prefix}{field.name}.")
        elif "option" in field.metadata:
            names[prefix + field.name] = field.metadata["option"]
    return names


def _flatten(tables: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in tables.items():
        is_table = isinstance(value, dict)
        pairs += _flatten(value, f"{prefix}{name}.") if is_table else [(prefix + name, value)]
    return pairs
