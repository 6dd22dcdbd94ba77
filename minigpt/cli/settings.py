"""The settings of a command: defaults, overridden by a TOML file, overridden by options.

The options of a config are parsed to a TypedDict that contains only the options on the command
line. So the command line is parsed once, and defaults are distinguished from explicit values.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import tomllib
import typing
from pathlib import Path
from typing import Annotated, Any, TypedDict

import tyro

from minigpt.config import Config, DropoutConfig


def options_of(config: Any, *, default: str | None = None) -> Any:
    """The type of a config's options; the help shows the values of `config`, or `default`."""
    hints, docs = typing.get_type_hints(type(config)), _field_docs(type(config))
    options: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not field.metadata.get("is_option", True):
            continue
        if dataclasses.is_dataclass(value):
            options[field.name] = options_of(value, default=default)
        else:
            hint = f"(default: {default or value})"
            argument = tyro.conf.arg(help=docs.get(field.name), help_behavior_hint=hint)
            options[field.name] = Annotated[hints[field.name], argument]
    make_type: Any = TypedDict
    return make_type(f"{type(config).__name__}Options", options, total=False)


def _field_docs(config: type) -> dict[str, str]:
    """The docstring below each field of a dataclass."""
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
    """The settings of a run: defaults, overridden by --config, --dropout and options in turn."""
    settings = merge(default, _read_toml(config)) if config else default
    if dropout is not None:
        model = dataclasses.replace(settings.model, dropout=DropoutConfig.uniform(dropout))
        settings = dataclasses.replace(settings, model=model)
    return merge(settings, options)


def _read_toml(path: Path) -> dict[str, Any]:
    """Read the settings in a file and validate them like options.

    Ignores run_dir and extended_from: the config.toml of a run has them of its own directory.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"config={str(path)!r} cannot be read: {error}.") from None
    for name in ("run_dir", "extended_from"):
        tables.pop(name, None)
    args = [arg for name, value in _flatten(tables) for arg in (f"--{name}", str(value))]
    prog = f"minigpt train --config {path}"
    return tyro.cli(tyro.conf.FlagConversionOff[options_of(Config())], args=args, prog=prog)


def _flatten(tables: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in tables.items():
        is_table = isinstance(value, dict)
        pairs += _flatten(value, f"{prefix}{name}.") if is_table else [(prefix + name, value)]
    return pairs
