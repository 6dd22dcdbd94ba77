"""minigpt replay: run one step of a run again."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from minigpt.cli.common import make_console


@dataclass(frozen=True)
class Replay:
    """Run one training step again, with the same batch and masks, and print every dropout site.

    For example:

      $ minigpt replay runs/shakespeare-char-cpu --step 2000
    """

    run_dir: tyro.conf.Positional[Path]
    """directory of a run of `minigpt train`"""
    step: int
    """number of the step, from 1, as in metrics.jsonl"""
    json: bool = False
    """print one JSON object"""


def run_replay(command: Replay) -> None:
    """Print the step and its dropout sites, as a table or as JSON."""
    from minigpt.tasks.replay import print_replay, replay, to_json

    def warn(message: str) -> None:
        print(f"minigpt: {message}", file=sys.stderr)

    result = replay(command.run_dir, command.step, warn)
    if command.json:
        print(json.dumps(to_json(result)))
        return
    print_replay(result, make_console())
