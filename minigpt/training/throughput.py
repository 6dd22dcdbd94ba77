"""Training time, tokens a second, and model FLOPs utilization.

Utilization is the share of the devices' peak that the model's arithmetic needs.

FLOPs of a token, forward and backward: 6 for every parameter and 12 * layers * width * context for
attention (Chowdhery et al., "PaLM", 2022, appendix B). Arithmetic that remat repeats does not
count. The peak is that of dense bfloat16 products, as the makers state it; a device that is not in
the table has none, and no utilization is guessed.
"""

from __future__ import annotations

import time

from minigpt.config import ModelConfig
from minigpt.training.context import TrainContext

# By the start of jax.Device.device_kind, in FLOP/s.
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


def flops_per_token(config: ModelConfig, parameters: int) -> float:
    """Model FLOPs of training on one token."""
    return 6 * parameters + 12 * config.n_layer * config.n_embd * config.block_size


def share_of_peak(flops_per_s: float, device_kind: str, devices: int) -> float | None:
    """The share of the devices' peak, or None where the peak is not known."""
    peak = next((peak for kind, peak in PEAKS.items() if device_kind.startswith(kind)), None)
    return None if peak is None else flops_per_s / (peak * devices)


def utilization(context: TrainContext, tokens_per_s: float) -> dict[str, float]:
    """A record's "mfu", where the devices' peak is known."""
    flops = flops_per_token(context.config.model, context.parameter_count) * tokens_per_s
    devices = context.compiled.mesh.devices.ravel()
    share = share_of_peak(flops, devices[0].device_kind, len(devices))
    return {} if share is None else {"mfu": round(share, 4)}


class TrainingClock:
    """Training time, without validation and saving."""

    def __init__(self, tokens_per_step: int, step: int, elapsed_s: float):
        self.tokens_per_step, self.last_step = tokens_per_step, step
        self.last_lap = time.perf_counter()
        self.zero = self.last_lap - elapsed_s

    def elapsed(self) -> float:
        """Seconds of training up to the last lap, those before a resumption included."""
        return round(self.last_lap - self.zero, 3)

    def lap(self, step: int) -> dict[str, float]:
        """Tokens a second since the last lap, and the seconds of training."""
        now = time.perf_counter()
        tokens = (step - self.last_step) * self.tokens_per_step
        speed = tokens / (now - self.last_lap)
        self.last_lap, self.last_step = now, step
        return {"tokens_per_s": round(speed, 1), "elapsed_s": self.elapsed()}

    def exclude_time_since_lap(self) -> None:
        """Leave out the time since the last lap."""
        now = time.perf_counter()
        self.zero += now - self.last_lap
        self.last_lap = now
