"""The time of a GPT's training step in minigpt and in PyTorch, with dropout and without.

    python benchmarks/bench_train_step.py [--full]      (make bench runs the short form)

minigpt and nanoGPT's architecture in PyTorch (SDPA, fused AdamW), at dropout 0 and 0.2, each in its
own process, in turn, on the same tokens. Ratios are to minigpt without dropout, round by round.
Writes results/train_step-DEVICE.json and prints the table.
"""

import argparse

import harness
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

SIZES = {"shakespeare-char-cpu": 12, "shakespeare-char": 16}
RUNS = [(framework, rate) for rate in (0.0, 0.2) for framework in ("minigpt", "torch")]


def measure(preset, batch_size, rounds, calls):
    """Quartiles of the time of a step, as a multiple of minigpt's without dropout."""
    workers = {run: harness.Worker(run[0]) for run in RUNS}
    for (_, rate), worker in workers.items():
        case = {"op": "train_step", "preset": preset, "batch_size": batch_size, "rate": rate}
        worker.ask(build=case)
    times = {run: [] for run in RUNS}
    for _ in track(range(rounds), f"{preset}, {batch_size} rows"):
        for run, worker in workers.items():
            times[run].append(np.median(worker.ask(calls=calls)["seconds"]))
    versions = {run[0]: worker.versions for run, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    base = np.array(times["minigpt", 0.0])
    rows = [
        {"preset": preset, "batch_size": batch_size, "framework": run[0], "dropout": run[1]}
        | {"to_minigpt_without_dropout": harness.quartiles(np.array(seconds) / base)}
        for run, seconds in times.items()
    ]
    return rows, versions


def print_table(rows):
    table = Table(title="a training step, as a multiple of minigpt's without dropout")
    for name in ("preset", "rows", "framework", "dropout", "quartiles"):
        table.add_column(name)
    for row in rows:
        low, middle, high = row["to_minigpt_without_dropout"]
        cells = (row["preset"], row["batch_size"], row["framework"], row["dropout"])
        table.add_row(*map(str, cells), f"{middle:.2f} ({low:.2f} to {high:.2f})")
    Console(width=120).print(table)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="more rounds")
    full = parser.parse_args().full
    rows, versions = [], {}
    for preset, batch_size in SIZES.items():
        calls = 20 if preset.endswith("cpu") else 2
        new_rows, versions = measure(preset, batch_size, 15 if full else 5, calls)
        rows += new_rows
    harness.save(
        {"environment": harness.describe_environment(versions), "rows": rows}, "train_step"
    )
    print_table(rows)


if __name__ == "__main__":
    main()
