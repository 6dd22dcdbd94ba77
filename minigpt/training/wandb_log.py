"""Weights & Biases: the metrics of a run, in one wandb run that goes on when the run resumes.

It never stops or changes the training: the first call that fails is a warning, and no further call
is made until the run is started again. metrics.jsonl has every record in any case. The id of the
wandb run is kept in RUN_DIR/wandb_id. A resumed run repeats some steps; wandb ignores steps that it
has, and the values are the same.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.atomic_write import write_atomic
from minigpt.config import Config

PROJECT, ID_FILE = "minigpt", "wandb_id"


def require_wandb() -> None:
    """Raise ValueError if the package is not installed."""
    try:
        import wandb  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ValueError(
            "wandb=True is not allowed: wandb is not installed. Install it: pip install "
            "'dropout-jax[wandb]', or leave --wandb out."
        ) from None


class WandbLog:
    """Sends records to Weights & Biases; `warn` gets a message if that fails."""

    def __init__(self, run_dir: Path, config: Config, warn: Callable[[str], object]):
        self._warn, self._run = warn, None
        self._run = self._attempt(lambda: _start(run_dir, config))

    def write(self, record: dict[str, Any]) -> None:
        """Send a record of metrics.jsonl."""
        values = {name: value for name, value in record.items() if name != "step"}
        if (run := self._run) is not None:
            self._attempt(lambda: run.log(values, step=record["step"]))

    def close(self) -> None:
        """Wait until everything is sent."""
        if (run := self._run) is not None:
            self._attempt(run.finish)

    def _attempt(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # whatever fails there, the training goes on
            self._run = None
            self._warn(
                f"wandb has failed: {error}. The training goes on without it; metrics.jsonl has "
                "every record."
            )


def _start(run_dir: Path, config: Config) -> Any:
    import wandb  # pyright: ignore[reportMissingImports]

    return wandb.init(
        project=PROJECT,
        id=_run_id(run_dir),
        name=run_dir.name,
        dir=str(run_dir.resolve()),
        config=dataclasses.asdict(config),
        resume="allow",
        allow_val_change=True,  # some settings may change when a run resumes
    )


def _run_id(run_dir: Path) -> str:
    """The id of the run's wandb run; it is on disk before its first use."""
    path = run_dir / ID_FILE
    if not path.exists():
        write_atomic(path, secrets.token_hex(8).encode())
    return path.read_text().strip()
