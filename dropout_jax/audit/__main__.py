"""The command: audit the steps that a function of a file names, and exit by what is found.

    python -m dropout_jax.audit FILE.py:function [--json PATH] [--html PATH] [--fail-on SEVERITY]

The function takes no arguments and returns those of `audit.check` as a dict, or findings:

    def steps():
        return {"train_step": train_step, "args_at": lambda step: (state, batch, keys[step])}

Or FILE.py:function is a training step itself, and --args FILE.py:args_at a function from the number
of a step to its arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dropout_jax.audit._check import check
from dropout_jax.audit._findings import Finding, Findings
from dropout_jax.audit._html import to_html
from dropout_jax.audit._json import to_json
from dropout_jax.audit._load import load_function
from dropout_jax.audit._text import to_text

PROGRAM = "python -m dropout_jax.audit"
OUTPUTS = ("json", "html")
NOTHING_FOUND, FOUND, WRONG_USE = 0, 1, 2
FOLDER = Path(__file__).parent
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def main(words: Sequence[str] | None = None) -> int:
    """Audit what the words of the command line name, and return the exit code."""
    options = _parse(words)
    try:
        for name in OUTPUTS:
            _require_writable(name, getattr(options, name))
        # What the audited code prints must not be in the JSON.
        with contextlib.redirect_stdout(sys.stderr if options.json == "-" else sys.stdout):
            findings = _audit(options.target, options.args)
        _write(findings, options)
    except (Exception, SystemExit) as error:
        _print_error(error)
        return WRONG_USE
    if options.fail_on == "never":
        return NOTHING_FOUND
    return FOUND if findings.at_least(options.fail_on) else NOTHING_FOUND


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Find what is wrong with the dropout of a training and an evaluation step.",
        epilog="The exit code is 0 if nothing is found, 1 if something is, and 2 after wrong use.",
    )
    add = parser.add_argument
    add(
        "target",
        metavar="FILE.py:function",
        help="a function without arguments that returns those of dropout_jax.audit.check as a "
        "dict, or findings; or with --args a training step; also package.module:function",
    )
    add(
        "--args",
        metavar="FILE.py:function",
        help="a function from the number of a step to the arguments of the training step",
    )
    add("--json", metavar="PATH", help="write every number to this file; - prints nothing else")
    add("--html", metavar="PATH", help="write one page with the masks as pictures to this file")
    add(
        "--fail-on",
        choices=("error", "warning", "never"),
        default="warning",
        help="the exit code is 1 after a finding of this severity or above (default: warning)",
    )
    return parser.parse_args(words)


def _require_writable(name: str, path: str | None) -> None:
    """Refuse a path before the audit, which takes time."""
    if path is None or (name == "json" and path == "-"):
        return
    folder = Path(path).parent
    if Path(path).is_dir() or not folder.is_dir():
        raise ValueError(
            f"{name}={path!r} is not allowed: it must be a file in an existing folder. Create the "
            f"folder, or choose another --{name}."
        )


def _audit(target: str, args: str | None) -> Findings:
    """Return the findings about what the function of a command line returns."""
    function = load_function("target", target)
    if args is not None:
        return check(function, args_at=load_function("args", args))
    required = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind in POSITIONAL
    ]
    if required:
        raise ValueError(
            f"target={target!r} is not allowed: it must be a function without arguments, and it "
            f"takes {', '.join(required)}. If it is the training step, name a function from the "
            "number of a step to its arguments: --args FILE.py:function."
        )
    returned = function()
    if isinstance(returned, tuple) and all(isinstance(one, Finding) for one in returned):
        return returned if isinstance(returned, Findings) else Findings(returned)
    return check(**_arguments(target, returned))


def _arguments(target: str, returned: Any) -> dict[str, Any]:
    """Return the arguments of `check` that a function has returned."""
    names = list(inspect.signature(check).parameters)
    remedy = "Return {'train_step': step, 'args_at': arguments_at}."
    if not isinstance(returned, dict):
        raise ValueError(
            f"target={target!r} is not allowed: it must return a dict, or findings, not "
            f"{type(returned).__name__}. {remedy}"
        )
    unknown = [name for name in returned if name not in names]
    if unknown:
        raise ValueError(
            f"target={target!r} is not allowed: it returns {unknown[0]!r}, and it must return some "
            f"of {', '.join(names)}. Leave it out, or correct its name."
        )
    if returned.get("train_step") is None and returned.get("eval_step") is None:
        raise ValueError(
            f"target={target!r} is not allowed: it must return a train_step, or an eval_step, or "
            f"both. {remedy}"
        )
    return returned


def _write(findings: Findings, options: argparse.Namespace) -> None:
    """Print the table or the JSON, and write the files."""
    contents = {
        "json": lambda: json.dumps(to_json(findings), indent=1) + "\n",
        "html": lambda: to_html(findings, f"Audit of {options.target}"),
    }
    for name in OUTPUTS:
        path = getattr(options, name)
        if path is not None and path != "-":
            _write_file(name, path, contents[name]())
    if options.json == "-":
        print(contents["json"](), end="")
    else:
        print(to_text(findings))


def _write_file(name: str, path: str, content: str) -> None:
    try:
        Path(path).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{name}={path!r} is not allowed: it must be a file that can be written "
            f"({error.strerror}). Choose another --{name}."
        ) from None


def _print_error(error: BaseException) -> None:
    """Print one line if this command refuses something, and else the audited code's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    is_refusal = isinstance(error, ValueError) and Path(frames[-1].filename).parent == FOLDER
    if is_refusal:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)


if __name__ == "__main__":
    sys.exit(main())
