"""The command `minigpt`: parse the arguments, run the command, convert errors to exit codes."""

from __future__ import annotations

import os
import sys
from typing import Any

try:
    import rich  # noqa: F401
    import tyro
except ModuleNotFoundError as missing:
    sys.exit(f"minigpt needs {missing.name}: pip install 'dropout-jax[train]'")

from minigpt.cli.classify import Classify, run_classify
from minigpt.cli.evaluate import Eval, run_eval
from minigpt.cli.export import Export, run_export
from minigpt.cli.finetune import Finetune, run_finetune
from minigpt.cli.plan import Plan, run_plan
from minigpt.cli.replay import Replay, run_replay
from minigpt.cli.sample import Sample, run_sample
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
    Export: run_export,
}


def main(args: list[str] | None = None) -> None:
    """Run a command; a bad value prints one line and exits with code 2."""
    try:
        command = parse(sys.argv[1:] if args is None else args)
        HANDLERS[type(command)](command)
    except (ValueError, OSError) as error:
        print(f"minigpt: {error}", file=sys.stderr, flush=True)
        _exit(2)
    except KeyboardInterrupt:
        print("minigpt: interrupted; the last checkpoint is kept", file=sys.stderr)
        sys.exit(130)


def parse(args: list[str]) -> Any:
    """Parse the arguments to an instance of one of the classes in HANDLERS."""
    commands: Any = (
        Train | Finetune | Sample | Eval | Replay | Plan | Uncertainty | Classify | Export
    )
    return tyro.cli(commands, args=args, prog="minigpt")


def _exit(code: int) -> None:
    """Exit; with several processes immediately, because the others wait for this one in a step."""
    distributed = sys.modules.get("minigpt.distributed")  # not imported if the arguments are bad
    if distributed is not None and not distributed.is_single_process():
        os._exit(code)
    sys.exit(code)
