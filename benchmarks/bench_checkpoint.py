"""The cost of a checkpoint for the step loop: the stall of `save`, and one copy of the arrays.

    python benchmarks/bench_checkpoint.py      (make bench runs it)

For two presets, in turn in one process: seconds of a copy to host memory, of Writer.save, and until
the checkpoint is on disk; and of a step right after a save, which shares the cores with the writing
thread, and of a step without a save. Quartiles. Prints a table and writes
results/checkpoint-DEVICE.json.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import harness
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from minigpt.checkpoint import CheckpointWriter, host_arrays
from minigpt.config import PRESETS
from minigpt.data import make_batch
from minigpt.training import build_train_functions

ROUNDS, VOCABULARY = 10, 65
COLUMNS = ("copy", "save", "until on disk", "step", "step while saving")


def measure(preset):
    """Times of each kind, round by round."""
    config = dataclasses.replace(PRESETS[preset], batch_size=12)
    training = build_train_functions(config, VOCABULARY)
    text = np.zeros(10_000, np.uint16)
    rows = training.put_batch(make_batch(text, 0, 0, 12, config.model.block_size))
    state, key = training.state, jax.random.key(0)
    times = {name: [] for name in COLUMNS}

    def step():
        nonlocal state
        start_time = time.perf_counter()
        state, measured = training.train_step(state, rows, key)
        float(measured["train_loss"])
        return time.perf_counter() - start_time

    with (
        tempfile.TemporaryDirectory() as folder,
        CheckpointWriter(Path(folder)) as writer,
    ):
        step()
        for number in range(ROUNDS):
            times["step"].append(step())
            start_time = time.perf_counter()
            copies = [np.array(leaf) for leaf in host_arrays(state).values()]
            times["copy"].append(time.perf_counter() - start_time)
            del copies
            start_time = time.perf_counter()
            writer.save(number, host_arrays(state), {})
            times["save"].append(time.perf_counter() - start_time)
            times["step while saving"].append(step())
            writer.wait()
            start_time = time.perf_counter()
            writer.save(number, host_arrays(state), {})
            writer.wait()
            times["until on disk"].append(time.perf_counter() - start_time)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {"preset": preset, "bytes": size, **{k: harness.quartiles(v) for k, v in times.items()}}


def main():
    rows = [measure(preset) for preset in ("shakespeare-char-cpu", "shakespeare-char")]
    table = Table("preset", "MB", *(f"{name}, s" for name in COLUMNS))
    for row in rows:
        cells = ["{1:.3f} ({0:.3f} to {2:.3f})".format(*row[name]) for name in COLUMNS]
        table.add_row(row["preset"], f"{row['bytes'] / 1e6:.1f}", *cells)
    Console(width=160).print(table)
    version, device = jax.__version__, jax.devices()[0].device_kind
    versions = {"jax": {"device": device, "jax": version, "version": version}}
    harness.save(
        {"environment": harness.describe_environment(versions), "rows": rows}, "checkpoint"
    )


if __name__ == "__main__":
    main()
