"""Training time, tokens per second, and model FLOPs utilization (MFU).

MFU is the FLOPs that the model needs, divided by the peak FLOPs of the devices.

The FLOPs of a token, forward and backward: 6 per parameter, and 12 * layers * width * context for
attention (Chowdhery et al., "PaLM", 2022, appendix B). A token table that is not the output layer
too is only looked up, and not counted. A parameter that is not trained needs no gradient: 4. FLOPs
that remat repeats are not counted.
The peak is the manufacturer's number for dense bfloat16 matrix products. For a device that is not
in the table no MFU is reported.
"""

from __future__ import annotations

import math
import time
from typing import Any

import jax

from minigpt.config import Config, ModelConfig
from minigpt.model import split_trained
from minigpt.training.context import TrainContext

# Peak FLOP/s by the prefix of jax.Device.device_kind; the first that fits counts.
PEAKS = {
    "NVIDIA H100 80GB HBM3": 989e12,  # NVIDIA H100 datasheet, SXM5, without sparsity
    "NVIDIA H100 PCIe": 756e12,  # the same
    "NVIDIA H200": 989e12,  # NVIDIA H200 datasheet
    "NVIDIA A100": 312e12,  # NVIDIA A100 datasheet
    "TPU v4": 275e12,  # cloud.google.com/tpu/docs/v4
    "TPU v5 lite": 197e12,  # cloud.google.com/tpu/docs/v5e
    "TPU v5": 459e12,  # cloud.google.com/tpu/docs/v5p, whose kind is "TPU v5"
    "TPU v6 lite": 918e12,  # cloud.google.com/tpu/docs/v6e
}


def count_multiplied_parameters(model: ModelConfig, params: Any) -> int:
    """The number of parameters of a GPT, without a token table that is only looked up."""
    tables = [params["tokens"]] if "tokens" in params and not model.tied_head else []
    total, only_looked_up = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for tree in (params, tables)
    )
    return total - only_looked_up


def flops_per_token(model: ModelConfig, parameters: int, trained: int | None = None) -> float:
    """FLOPs that the model needs to train on one token; see count_multiplied_parameters.

    `trained` is the number of parameters that are trained; None: all.
    """
    frozen = 0 if trained is None else parameters - trained
    return 6 * parameters - 2 * frozen + 12 * model.n_layer * model.n_embd * model.block_size


def training_flops_per_token(config: Config, params: Any) -> float:
    """FLOPs that a run needs to train on one token."""
    trained = jax.eval_shape(lambda params: split_trained(config, params)[0], params)
    counts = (count_multiplied_parameters(config.model, tree) for tree in (params, trained))
    return flops_per_token(config.model, *counts)


def peak_flops_per_s(device_kind: str) -> float | None:
    """The peak of one device; None if it is not known."""
    return next((peak for kind, peak in PEAKS.items() if device_kind.startswith(kind)), None)


def share_of_peak(flops_per_s: float, device_kind: str, devices: int) -> float | None:
    """The share of the devices' peak; None if the peak is not known."""
    peak = peak_flops_per_s(device_kind)
    return None if peak is None else flops_per_s / (peak * devices)


def utilization(context: TrainContext, tokens_per_s: float) -> dict[str, float]:
    """The entry "mfu" of a record; empty if the devices' peak is not known."""
    params = context.compiled.state.params
    flops = training_flops_per_token(context.config, params) * tokens_per_s
    devices = context.compiled.mesh.devices.ravel()
    share = share_of_peak(flops, devices[0].device_kind, len(devices))
    return {} if share is None else {"mfu": round(share, 4)}


class TrainingClock:
    """Measures the time of training, without validation and saving."""

    def __init__(self, tokens_per_step: int, step: int, elapsed_s: float):
        self._tokens_per_step, self._last_step = tokens_per_step, step
        self._last_lap = time.perf_counter()
        self._start = self._last_lap - elapsed_s

    def elapsed(self) -> float:
        """Seconds of training until the last lap, including those before the run was resumed."""
        return round(self._last_lap - self._start, 3)

    def lap(self, step: int) -> dict[str, float]:
        """Tokens per second since the last lap, and the seconds of training."""
        now = time.perf_counter()
        tokens = (step - self._last_step) * self._tokens_per_step
        tokens_per_s = tokens / (now - self._last_lap)
        self._last_lap, self._last_step = now, step
        return {"tokens_per_s": round(tokens_per_s, 1), "elapsed_s": self.elapsed()}

    def exclude_time_since_lap(self) -> None:
        """Do not count the time since the last lap."""
        now = time.perf_counter()
        self._start += now - self._last_lap
        self._last_lap = now
