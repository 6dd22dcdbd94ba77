"""minigpt replay: make one step of a run again."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from minigpt.cli.common import make_console


@dataclass(frozen=True)
class Replay:
    """Make one step of a run again, with its very batch and masks, and look at every site."""

    run_dir: tyro.conf.Positional[Path]
    """the directory that `minigpt train` wrote"""
    step: int
    """counted from 1, as in metrics.jsonl"""
    json: bool = False
    """print one JSON object"""


def run_replay(command: Replay) -> None:
    """Print the step and its sites, as a table or as JSON."""
    from minigpt.tasks.replay import print_replay, replay, to_json

    def warn(message: str) -> None:
        print(f"minigpt: {message}", file=sys.stderr)

    result = replay(command.run_dir, command.step, warn)
    if command.json:
        print(json.dumps(to_json(result)))
        return
    print_replay(result, make_console())
