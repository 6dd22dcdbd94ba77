"""The settings of a command: defaults, a TOML file and options on top of each other, in that order.

The options of a config are one TypedDict, whose keys are those that were given, so the command line
is parsed once and tells what was asked for from what is the default.
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
    """The type of a config's options; help shows the values of `config`, or `default` for each."""
    hints, docs = typing.get_type_hints(type(config)), _field_docs(type(config))
    options: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            options[field.name] = options_of(value, default=default)
        else:
            hint = f"(default: {default or value})"
            about = tyro.conf.arg(help=docs.get(field.name), help_behavior_hint=hint)
            options[field.name] = Annotated[hints[field.name], about]
    make_type: Any = TypedDict
    return make_type(f"{type(config).__name__}Options", options, total=False)


def _field_docs(config: type) -> dict[str, str]:
    """The string below each field of a dataclass."""
    (definition,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, below in itertools.pairwise(definition.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                docs[name] = " ".join(str(text).split())
    return docs


def merge(config: Any, options: dict[str, Any]) -> Any:
    """The config with the options that are given."""
    changes = {
        name: merge(getattr(config, name), value) if isinstance(value, dict) else value
        for name, value in options.items()
    }
    return dataclasses.replace(config, **changes)


def resolve(
    default: Config, config: Path | None, dropout: float | None, options: dict[str, Any]
) -> Config:
    """The settings of a run; later wins: defaults, --config, --dropout, single options."""
    settings = merge(default, _read_toml(config)) if config else default
    if dropout is not None:
        model = dataclasses.replace(settings.model, dropout=DropoutConfig.uniform(dropout))
        settings = dataclasses.replace(settings, model=model)
    return merge(settings, options)


def _read_toml(path: Path) -> dict[str, Any]:
    """A file's settings, checked as if given as options.

    The run directory is left out: a run's config.toml names its own, which is taken.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"config={str(path)!r} cannot be read: {error}.") from None
    tables.pop("run_dir", None)
    words = [word for name, value in _flatten(tables) for word in (f"--{name}", str(value))]
    prog = f"minigpt train --config {path}"
    return tyro.cli(tyro.conf.FlagConversionOff[options_of(Config())], args=words, prog=prog)


def _flatten(tables: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in tables.items():
        is_table = isinstance(value, dict)
        pairs += _flatten(value, f"{prefix}{name}.") if is_table else [(prefix + name, value)]
    return pairs
