"""What looks on, by choice: TensorBoard's files and a profile of some steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

WARM_UP = 2  # steps that are not profiled: the first compiles


class Observers:
    """Writes RUN_DIR/tensorboard and RUN_DIR/profile, or neither."""

    def __init__(self, run_dir: Path, step: int, *, tensorboard: bool, profile_steps: int):
        self._board = _board(run_dir / "tensorboard", step) if tensorboard else None
        self._profile, self._profiling = run_dir / "profile", False
        first = step + WARM_UP
        self._profiled = range(first, first + profile_steps)

    def before(self, step: int) -> None:
        """Begin or end the profile; `step` is about to be made."""
        if (step in self._profiled) == self._profiling:
            return
        if self._profiling:
            jax.profiler.stop_trace()
        else:
            jax.profiler.start_trace(self._profile)
        self._profiling = not self._profiling

    def record(self, record: dict[str, Any]) -> None:
        """Write the numbers of a record of metrics.jsonl."""
        if self._board is not None:
            for name in record.keys() - {"step"}:
                self._board.add_scalar(name, record[name], record["step"])

    def __enter__(self) -> Observers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._profiling:
            jax.profiler.stop_trace()
        if self._board is not None:
            self._board.close()


def _board(folder: Path, step: int):
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        raise ValueError(
            "tensorboard=True is not allowed: it must be False without tensorboardX. Install it: "
            "pip install tensorboardX."
        ) from None
    # A run that goes on hides what was written of later steps before.
    return SummaryWriter(str(folder), purge_step=step + 1)
