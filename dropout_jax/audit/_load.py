"""Load the function that a word of the command line names: FILE.py:function, module:function."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def load_function(name: str, target: str) -> Callable[..., Any]:
    """Import a file or a module, and return a function of it.

    The folder of a file is put on the path, as Python does for a script.

    Args:
      name: of the argument, for errors.
      target: such as "train.py:steps" or "package.module:steps".

    Raises:
      ValueError: there is no such file, module or function.
      Exception: what the file or the module raises.
    """
    where, _, attribute = target.rpartition(":")
    if not where or not attribute.isidentifier():
        raise _refuse(name, target, "Name a function: python -m dropout_jax.audit FILE.py:function")
    is_file = where.endswith(".py")
    module = _load_file(name, target, Path(where)) if is_file else _load_module(name, target, where)
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [
            each
            for each, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        has = f"{where} has {', '.join(names)}" if names else f"{where} has no function"
        raise _refuse(name, target, has)
    return function


def _load_file(name: str, target: str, file: Path) -> ModuleType:
    if not file.is_file():
        raise _refuse(name, target, f"There is no file {str(file)!r} in {str(Path.cwd())!r}")
    file = file.resolve()
    known = sys.modules.get(file.stem)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    spec = importlib.util.spec_from_file_location(
        f"audited_{file.stem}" if known else file.stem, file
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    sys.modules[spec.name] = module  # as dataclasses look there for their module
    spec.loader.exec_module(module)
    return module


def _load_module(name: str, target: str, module: str) -> ModuleType:
    try:
        is_missing = importlib.util.find_spec(module) is None
    except (ModuleNotFoundError, ValueError):  # of a parent
        is_missing = True
    if is_missing:
        path = module.replace(".", "/")
        remedy = f"There is no module {module!r}; a file is named with .py: {path}.py:function"
        raise _refuse(name, target, remedy)
    return importlib.import_module(module)


def _refuse(name: str, target: str, remedy: str) -> ValueError:
    return ValueError(
        f"{name}={target!r} is not allowed: it must be FILE.py:function or package.module:function."
        f" {remedy}."
    )
