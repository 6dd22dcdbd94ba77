"""A run at work: what every part of the loop needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console

from minigpt.config import Config
from minigpt.data import Dataset
from minigpt.distributed import is_single_process
from minigpt.run.directory import RunSpec
from minigpt.training.interrupt import InterruptHandler
from minigpt.training.train_step import CompiledSteps


class TrainContext(NamedTuple):
    """What every part of the loop needs."""

    run: RunSpec
    tokens: Dataset
    training: CompiledSteps
    run_dir: Path
    console: Console
    stopping: InterruptHandler

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.run.config

    @property
    def parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.training.state.params))

    def stoppable(self, function: Callable) -> Callable:
        """The function, which raises Stopped instead if somebody asked for a stop."""

        def call(*args):
            if is_single_process():  # many processes leave between two steps only
                self.stopping.check()
            return function(*args)

        return call
