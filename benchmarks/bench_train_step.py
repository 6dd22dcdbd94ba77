"""The time of a GPT's training step in minigpt and in PyTorch, with dropout and without.

    python benchmarks/bench_train_step.py [--full]      (make bench runs the short form)

minigpt, nanoGPT's architecture in PyTorch and transformers' models (SDPA, fused AdamW), without
dropout and with it, each in its own process, in turn, on the same tokens. Ratios are to
minigpt without dropout, round by round; the memory is the most that the process had, its libraries
included. Writes results/train_step-DEVICE.json and prints the table.
"""

import argparse
from typing import NamedTuple

import harness
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table


class Size(NamedTuple):
    """A model (shapes.py), the tokens of a step, the rate of its dropout, and PyTorch's side."""

    model: str
    batch_size: int
    time: int
    rate: float
    peer: str
    calls: int


SIZES = (
    Size("shakespeare-char-cpu", 12, 64, 0.2, "torch", 20),
    Size("shakespeare-char", 16, 256, 0.2, "torch", 2),
    Size("gpt2", 1, 128, 0.1, "transformers", 1),
    Size("llama", 4, 256, 0.1, "transformers", 2),
)


def measure(size, rounds):
    """Quartiles of the time of a step, as a multiple of minigpt's without dropout."""
    runs = [(framework, rate) for rate in (0.0, size.rate) for framework in ("minigpt", size.peer)]
    workers = {run: harness.Worker(run[0]) for run in runs}
    case = {"op": "train_step", "model": size.model, "batch_size": size.batch_size}
    for (_, rate), worker in workers.items():
        worker.ask(build=case | {"time": size.time, "rate": rate})
    times = {run: [] for run in runs}
    for _ in track(range(rounds), f"{size.model}, {size.batch_size} x {size.time}"):
        for run, worker in workers.items():
            times[run].append(np.median(worker.ask(calls=size.calls)["seconds"]))
    peaks = {run: worker.ask(memory=True)["peak_bytes"] for run, worker in workers.items()}
    versions = {run[0]: worker.versions for run, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    base = np.array(times["minigpt", 0.0])
    rows = [
        {"model": size.model, "batch_size": size.batch_size, "time": size.time}
        | {"framework": run[0], "dropout": run[1]}
        | {"to_minigpt_without_dropout": harness.quartiles(np.array(seconds) / base)}
        | {"peak_bytes": peaks[run]}
        for run, seconds in times.items()
    ]
    return rows, versions


def print_table(rows):
    table = Table(title="a training step, as a multiple of minigpt's without dropout")
    for name in ("model", "rows x tokens", "framework", "dropout", "quartiles", "peak GB"):
        table.add_column(name)
    for row in rows:
        low, middle, high = row["to_minigpt_without_dropout"]
        tokens = f"{row['batch_size']} x {row['time']}"
        cells = (row["model"], tokens, row["framework"], str(row["dropout"]))
        quartiles = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        table.add_row(*cells, quartiles, f"{row['peak_bytes'] / 1e9:.1f}")
    Console(width=120).print(table)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="more rounds")
    full = parser.parse_args().full
    rows, versions = [], {}
    for size in SIZES:
        new_rows, new_versions = measure(size, 15 if full else 5)
        rows, versions = rows + new_rows, versions | new_versions
    harness.save(
        {"environment": harness.describe_environment(versions), "rows": rows}, "train_step"
    )
    print_table(rows)


if __name__ == "__main__":
    main()
