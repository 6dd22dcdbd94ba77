"""The objects that all parts of a training run share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from minigpt.config import Config
from minigpt.data import AnyTokenizer, Dataset
from minigpt.distributed import is_single_process
from minigpt.model import split_trained
from minigpt.run import RunSpec
from minigpt.training.interrupt import InterruptHandler
from minigpt.training.train_step import CompiledSteps


def count_parameters(params: Any) -> int:
    """The number of parameters in a tree of arrays, or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


class TrainContext(NamedTuple):
    """The objects that all parts of a training run share."""

    spec: RunSpec
    dataset: Dataset
    compiled: CompiledSteps
    run_dir: Path
    console: Console
    interrupt: InterruptHandler

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.spec.config

    @property
    def tokenizer(self) -> AnyTokenizer:
        """The run's tokenizer."""
        return self.spec.tokenizer

    @property
    def parameter_count(self) -> int:
        """The number of parameters."""
        return count_parameters(self.compiled.state.params)

    @property
    def trained_parameter_count(self) -> int:
        """The number of parameters that are trained."""
        params = self.compiled.state.params
        return count_parameters(
            jax.eval_shape(lambda params: split_trained(self.config, params)[0], params)
        )

    def interruptible(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that a call raises Interrupted after a signal."""

        def call(*args: Any) -> Any:
            if is_single_process():  # several processes stop only between two steps
                self.interrupt.check()
            return function(*args)

        return call
