"""Whether a run is finished: at its last step, or when validations no longer improve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minigpt import checkpoint
from minigpt.config import Config
from minigpt.run import read_metrics


def is_finished(config: Config, step: int, records: list[dict[str, Any]]) -> bool:
    """Whether a step is the last one, by the number of steps or by early stopping."""
    return step >= config.steps or is_out_of_patience(config, records)


def is_out_of_patience(config: Config, records: list[dict[str, Any]]) -> bool:
    """Whether the last `patience` validations have not lowered the minimum of the earlier ones.

    An extension of the run begins anew.
    """
    if config.patience is None:
        return False
    start = max((step for step, _ in config.extended_from), default=0)
    validations = [record for record in records if "val_loss" in record]
    losses = [record["val_loss"] for record in validations if record["step"] > start]
    recent, earlier = losses[-config.patience :], losses[: -config.patience]
    return bool(earlier) and min(recent) >= min(earlier)


def run_is_finished(run_dir: Path, config: Config) -> bool:
    """Whether the last step of a run is saved and validated."""
    steps = checkpoint.list_steps(run_dir)
    if not steps:
        return False
    records = [record for record in read_metrics(run_dir) if record["step"] <= steps[-1]]
    last = records[-1] if records else {}
    is_validated = last.get("step") == steps[-1] and "val_loss" in last
    return is_validated and is_finished(config, steps[-1], records)
