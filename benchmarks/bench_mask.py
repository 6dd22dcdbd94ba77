"""What the borrowed bits of the mask cost, and what packing another axis would.

    python benchmarks/bench_mask.py                 (make bench runs it)
    python benchmarks/bench_mask.py --tpu v5e:2x2   (asks XLA:TPU, without a TPU; needs jax[tpu])

Borrowed bits: the words of a mask at a rate of 16 bits, with the rotations of plane 0 and without.
Packing: dropout and its gradient with the words along the second-to-last axis and along the last,
jitted and called in turn in one process. Prints ratios of times (medians with quartiles) and writes
results/mask-DEVICE.json. `--tpu` prints the cycles that the compiler estimates for each program.
"""

import argparse
import functools
import os
import re
import time

import harness
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from rich.console import Console
from rich.table import Table

from dropout_jax import ops, random
from dropout_jax.random import _masks, _packing

RATE, ROUNDS = 0.1, 25
RATE_OF_16_BITS = 6553 / 2**16  # its T has no bit below those of the planes
SHAPES = {
    "activations": [(8, 32, 64), (8, 128, 1024), (16, 1024, 1024), (64, 1024, 1024)],
    "attention weights": [(8, 12, 128, 128), (2, 12, 1024, 1024)],
    "images": [(64, 32, 32, 3), (64, 64, 64, 3), (32, 56, 56, 64)],
}
OF_WORDS = [(64, 512), (256, 4096), (1024, 4096)]


def drop(axis, key, x):
    """Dropout whose mask is packed along an axis."""
    rate = jnp.float32(RATE)
    params = random.mask_params(key, rate)
    combine = functools.partial(_masks._combine_planes, params)
    words = _masks._draw_words(combine, x.shape, axis, None)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def apply(x, words):
        keep = _packing.unpack_along(words, axis, x.shape[axis])
        return ops.apply_mask(x, keep, rate)

    return apply(x, words)


def gradient(axis, key, x):
    return jax.grad(lambda x: drop(axis, key, x).astype(jnp.float32).sum())(x)


def measure_ratio(one, other, *args):
    """The quartiles of one's time over the other's."""
    fns = [jax.jit(fn).lower(*args).compile() for fn in (one, other)]
    ratios = []
    for _ in range(ROUNDS):
        times = [min(time_call(fn, *args) for _ in range(3)) for fn in fns]
        ratios.append(times[0] / times[1])
    return harness.quartiles(ratios)


def time_call(fn, *args):
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - start


def draw(shape, lowest, key):
    params = random.mask_params(key, jnp.float32(RATE_OF_16_BITS))
    return random.draw_packed_mask(params, shape, lowest=lowest)


def measure_borrowed_bits(key):
    rows = []
    for words, columns in OF_WORDS:
        with_them, without = (functools.partial(draw, (words, columns * 32), n) for n in (0, 8))
        np.testing.assert_array_equal(with_them(key), without(key))
        ratio = measure_ratio(with_them, without, key)
        rows.append({"words": words * columns, "with to without": ratio})
    return rows


def measure_packings(key):
    rows = []
    for kind, shapes in SHAPES.items():
        for shape in shapes:
            second, last = len(shape) - 2, len(shape) - 1
            for dtype in ("float32", "bfloat16"):
                row = {"array": kind, "shape": shape, "dtype": dtype}
                for name, fn in (("forward", drop), ("gradient", gradient)):
                    pair = (functools.partial(fn, axis) for axis in (second, last))
                    row[name] = measure_ratio(*pair, key, jnp.ones(shape, dtype))
                rows.append(row)
    return rows


def estimate_cycles(topology):
    """Print what XLA:TPU estimates for one chip that is not there."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    key = jax.eval_shape(lambda: jax.random.key(0))
    abstract = functools.partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(device))
    table = Table("array", "x * 2", "bernoulli", "second-to-last axis packed", "last axis packed")
    for shape in ((8192, 4096), (32, 256, 4096), (8, 12, 1024, 1024), (32, 56, 56, 64)):
        axes = len(shape) - 2, len(shape) - 1
        programs = [lambda key, x: x * 2, select_bernoulli]
        programs += [functools.partial(drop, axis) for axis in axes]
        args = abstract(key.shape, key.dtype), abstract(shape, jnp.bfloat16)
        texts = [jax.jit(fn).lower(*args).compile().as_text() or "" for fn in programs]
        cycles = [sum(map(int, re.findall(r'estimated_cycles":"(\d+)"', text))) for text in texts]
        table.add_row(str(shape), *(f"{count:,}" for count in cycles))
    Console().print(table)


def select_bernoulli(key, x):
    return jnp.where(jax.random.bernoulli(key, 1 - RATE, x.shape), x / (1 - RATE), 0)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tpu", metavar="TOPOLOGY", help="such as v5e:2x2")
    options = parser.parse_args()
    if options.tpu:
        estimate_cycles(options.tpu)
        return
    key = jax.random.key(0)
    result = {"borrowed bits": measure_borrowed_bits(key), "packing": measure_packings(key)}
    table = Table("array", "shape", "dtype", "forward", "gradient")
    for row in result["packing"]:
        ratios = (f"{m:.2f} ({a:.2f} to {b:.2f})" for a, m, b in (row["forward"], row["gradient"]))
        table.add_row(row["array"], str(row["shape"]), row["dtype"], *ratios)
    Console().print("the words with borrowed bits, to without:", result["borrowed bits"])
    Console().print("the second-to-last axis packed, to the last:", table)
    version, device = jax.__version__, jax.devices()[0].device_kind
    versions = {"jax": {"device": device, "jax": version, "version": version}}
    harness.save({"environment": harness.describe_environment(versions), **result}, "mask")


if __name__ == "__main__":
    main()
