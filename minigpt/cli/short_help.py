"""The short help: the options that people need first; `--help-all` shows every one."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import typing
from typing import Annotated, Any, TypedDict

import tyro

from minigpt.cli.settings import field_docs

FIRST = {
    "Train": (
        *("preset", "data", "dropout", "run_dir", "steps", "batch_size", "seed", "config"),
        *("model", "model.n_layer", "model.n_embd", "model.block_size"),
        *("optim", "optim.learning_rate"),
    ),
    "Finetune": (
        *("parent_run", "data", "dropout", "run_dir", "steps", "patience", "parent_checkpoint"),
        *("freeze", "model", "model.lora", "model.lora.rank", "model.lora.targets"),
        *("model.dropout", "model.dropout.lora", "optim", "optim.learning_rate"),
    ),
    "Plan": ("topology", "preset", "batch_size", "mesh", "model", "model.dtype", "model.remat"),
}


def shorten(command: type) -> type:
    """The command with the options of FIRST only, to show its help; others come back whole."""
    return _for_help(command, FIRST.get(command.__name__))


def with_joined_help(command: type) -> type:
    """The command with all its options, to show its help: each text is one paragraph."""
    return _for_help(command, None)


def _for_help(command: type, names: tuple[str, ...] | None) -> type:
    hints, docs = typing.get_type_hints(command, include_extras=True), field_docs(command)
    fields: list[Any] = []
    for field in dataclasses.fields(command):
        hint = hints[field.name]
        if field.name == "options":
            hint = _only(hint, names) if names else hint
        elif field.name != "settings":
            hint = Annotated[hint, tyro.conf.arg(help=docs.get(field.name))]
        if not names or field.name in ("options", *names):
            fields.append((field.name, hint, copy.copy(field)))  # a dataclass changes its fields
    short = dataclasses.make_dataclass(command.__name__, fields, frozen=True)
    every = f"\n\nEvery option: minigpt {command.__name__.lower()} --help-all" if names else ""
    short.__doc__ = f"{inspect.getdoc(command)}{every}"
    return short


def _only(options: Any, names: tuple[str, ...], prefix: str = "") -> Any:
    """A TypedDict of options without those whose dotted name is not in `names`."""
    kind, *extras = typing.get_args(options) if hasattr(options, "__metadata__") else (options,)
    kept: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if prefix + name in names:
            is_table = typing.is_typeddict(hint)
            kept[name] = _only(hint, names, f"{prefix}{name}.") if is_table else hint
    make_type: Any = TypedDict
    short = make_type(kind.__name__, kept, total=False)
    for extra in extras:
        short = Annotated[short, extra]
    return short
