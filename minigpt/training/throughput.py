"""Model FLOPs utilization: the share of a device's peak that the model's arithmetic needs.

FLOPs of a token, forward and backward: 6 for every parameter and 12 * layers * width * context for
attention (Chowdhery et al., "PaLM", 2022, appendix B). Arithmetic that remat repeats does not
count. The peak is that of dense bfloat16 products, as the makers state it; a device that is not in
the table has none, and no utilization is guessed.
"""

from __future__ import annotations

from minigpt.config import ModelConfig

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


def utilization(flops_per_s: float, device_kind: str, devices: int) -> float | None:
    """The share of the devices' peak, or None where the peak is not known."""
    peak = next((peak for kind, peak in PEAKS.items() if device_kind.startswith(kind)), None)
    return None if peak is None else flops_per_s / (peak * devices)
