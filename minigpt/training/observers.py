"""Optional observers of a run: TensorBoard, Weights & Biases and a profile of some steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from minigpt.config import Config
from minigpt.training.wandb_log import WandbLog, require_wandb

WARM_UP_STEPS = 2  # not profiled: the first step compiles


class Observers:
    """Writes RUN_DIR/tensorboard and RUN_DIR/profile and sends to wandb, if requested."""

    def __init__(
        self,
        run_dir: Path,
        step: int,
        *,
        tensorboard: bool,
        profile_steps: int,
        wandb_log: WandbLog | None = None,
    ):
        self._wandb_log = wandb_log
        self._writer = _summary_writer(run_dir / "tensorboard", step) if tensorboard else None
        self._profile_dir, self._is_profiling = run_dir / "profile", False
        first = step + WARM_UP_STEPS
        self._profiled_steps = range(first, first + profile_steps)

    def before_step(self, step: int) -> None:
        """Start or stop the profiler, before the step with this index (from 0)."""
        if (step in self._profiled_steps) == self._is_profiling:
            return
        if self._is_profiling:
            jax.profiler.stop_trace()
        else:
            jax.profiler.start_trace(self._profile_dir)
        self._is_profiling = not self._is_profiling

    def write_record(self, record: dict[str, Any]) -> None:
        """Write a record of metrics.jsonl to TensorBoard and wandb."""
        if self._wandb_log is not None:
            self._wandb_log.write(record)
        if self._writer is not None:
            for name in record.keys() - {"step"}:
                self._writer.add_scalar(name, record[name], record["step"])

    def __enter__(self) -> Observers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_profiling:
            jax.profiler.stop_trace()
        if self._writer is not None:
            self._writer.close()
        if self._wandb_log is not None:
            self._wandb_log.close()


def require_installed(config: Config) -> None:
    """Raise ValueError if a requested observer needs a package that is not installed."""
    if config.wandb:
        require_wandb()
    if config.tensorboard:
        _import_summary_writer()


def _import_summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        raise ValueError(
            "tensorboard=True is not allowed: tensorboardX is not installed. Install it: "
            "pip install tensorboardX."
        ) from None
    return SummaryWriter


def _summary_writer(folder: Path, step: int) -> Any:
    # A resumed run repeats the later steps: TensorBoard hides their old values.
    return _import_summary_writer()(str(folder), purge_step=step + 1)
