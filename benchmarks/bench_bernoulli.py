"""How much faster parity.bernoulli makes the mask of jax.random.bernoulli than JAX.

    python benchmarks/bench_bernoulli.py      (make bench runs it)

Both are jitted and called in turn in one process, with a wait for each result. Prints the ratio of
their times (medians with quartiles) by size and kind of key, and writes
results/bernoulli-DEVICE.json.
"""

import time

import harness
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from dropout_jax.parity import bernoulli

RATE, ROUNDS = 0.1, 25
SIZES = (10_000, 100_000, 1_000_000, 16_000_000)


def time_call(fn, *args):
    start_time = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - start_time


def measure_ratios(impl, size):
    """Ratios of JAX's time to ours, round by round."""
    key = jax.random.key(0, impl=impl)
    theirs = jax.jit(lambda key: jax.random.bernoulli(key, 1 - RATE, (size,)))
    ours = jax.jit(lambda key: bernoulli.keep_mask(key, RATE, (size,)))
    np.testing.assert_array_equal(theirs(key), ours(key))
    return [time_call(theirs, key) / time_call(ours, key) for _ in range(ROUNDS)]


def main():
    rows = [
        {
            "key": impl,
            "elements": size,
            "times faster": harness.quartiles(measure_ratios(impl, size)),
        }
        for impl in ("threefry2x32", "philox4x32")
        for size in SIZES
    ]
    table = Table("key", "elements", "times faster (quartiles)")
    for row in rows:
        low, median, high = row["times faster"]
        table.add_row(row["key"], f"{row['elements']:,}", f"{median:.1f} ({low:.1f} to {high:.1f})")
    Console().print(table)
    version, device = jax.__version__, jax.devices()[0].device_kind
    versions = {"jax": {"device": device, "jax": version, "version": version}}
    harness.save(
        {"environment": harness.describe_environment(versions), "rate": RATE, "rows": rows},
        "bernoulli",
    )


if __name__ == "__main__":
    main()
