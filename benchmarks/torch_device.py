"""The device that PyTorch's side of a benchmark runs on, and waiting for it."""

import os

import torch


def choose_device():
    """The GPU where there is one, with float32 products in TF32 as in JAX; else every core."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_float32_matmul_precision("high")
    return "cuda" if torch.cuda.is_available() else "cpu"


def waiting(call, device):
    """A function that calls and waits for the device."""

    def run():
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run
