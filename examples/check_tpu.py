"""Check dropout_jax and minigpt on a TPU: what is dropped, gradients, speed and memory.

    python examples/check_tpu.py [--only NAME ...] [--out FILE]

The checks are those of check_gpu.py; it writes benchmarks/results/tpu-DEVICE.json. It has not been
run: no TPU was to be had.
"""

import check_gpu

if __name__ == "__main__":
    check_gpu.main("tpu")
