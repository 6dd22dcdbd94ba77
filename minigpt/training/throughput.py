"""Training time, tokens per second, and model FLOPs utilization (MFU).

MFU is the FLOPs that the model needs, divided by the peak FLOPs of the devices.

The FLOPs of a token, forward and backward: 6 per parameter, and 12 * layers * width * context for
attention (Chowdhery et al., "PaLM", 2022, appendix B). A parameter that is not trained needs no
gradient: 4. FLOPs that remat repeats are not counted.
The peak is the manufacturer's number for dense bfloat16 matrix products. For a device that is not
in the table no MFU is reported.
"""

from __future__ import annotations

import time

from minigpt.config import ModelConfig
from minigpt.training.context import TrainContext

# Peak FLOP/s by the prefix of jax.Device.device_kind.
PEAKS = {
    "NVIDIA H100 80GB HBM3": 989e12,  # NVIDIA H100 datasheet, SXM5, without sparsity
    "NVIDIA H100 PCIe": 756e12,  # the same
    "NVIDIA H200": 989e12,  # NVIDIA H200 datasheet
    "NVIDIA A100": 312e12,  # NVIDIA A100 datasheet
    "TPU v4": 275e12,  # cloud.google.com/tpu/docs/v4
    "TPU v5 lite": 197e12,  # cloud.google.com/tpu/docs/v5e
    "TPU v5p": 459e12,  # cloud.google.com/tpu/docs/v5p
    "TPU v6 lite": 918e12,  # cloud.google.com/tpu/docs/v6e
}


def flops_per_token(config: ModelConfig, parameters: int, trained: int | None = None) -> float:
    """FLOPs that the model needs to train on one token; `trained` is the number that is trained."""
    frozen = 0 if trained is None else parameters - trained
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    return 6 * parameters - 2 * frozen + attention


def peak_flops_per_s(device_kind: str) -> float | None:
    """The peak of one device; None if it is not known."""
    return next((peak for kind, peak in PEAKS.items() if device_kind.startswith(kind)), None)


def share_of_peak(flops_per_s: float, device_kind: str, devices: int) -> float | None:
    """The share of the devices' peak; None if the peak is not known."""
    peak = peak_flops_per_s(device_kind)
    return None if peak is None else flops_per_s / (peak * devices)


def utilization(context: TrainContext, tokens_per_s: float) -> dict[str, float]:
    """The entry "mfu" of a record; empty if the devices' peak is not known."""
    counts = context.parameter_count, context.trained_parameter_count
    flops = flops_per_token(context.config.model, *counts) * tokens_per_s
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
