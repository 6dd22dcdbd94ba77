"""A post-norm block of an encoder, forward and backward, in dropout_jax, Flax and PyTorch.

    python benchmarks/bench_encoder.py [--full]      (make bench runs the short form)

Each framework and rate has its own process, in turn. Ratios are to dropout_jax with dropout, round
by round; temporaries are what XLA plans, with and without recomputing the block in the backward
pass. Writes results/encoder-DEVICE.json and prints the table.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor

import harness
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

CASE = {"op": "encoder_block", "shape": [16, 256, 512], "heads": 8}
RATE = 0.1
RUNS = [
    (framework, rate, remat)
    for framework in ("dropout_jax", "flax", "torch")
    for rate in (RATE, 0.0)
    for remat in ((False, True) if framework != "torch" else (False,))
]
BASE = ("dropout_jax", RATE, False)


def build(worker, run):
    """Compile a run in its worker."""
    _, rate, remat = run
    return worker.ask(build=CASE | {"rate": rate, "remat": remat})


def measure(rounds):
    """A row for each framework, rate and form: its time as a multiple of ours, its temporaries."""
    workers = {run: harness.Worker(run[0]) for run in RUNS}
    times = {run: [] for run in RUNS}
    with ThreadPoolExecutor() as pool:
        built = dict(zip(workers, pool.map(build, workers.values(), workers), strict=True))
    for _ in track(range(rounds), "measuring"):
        for run, worker in workers.items():
            times[run].append(np.median(worker.ask(calls=3)["seconds"]))
    versions = {run[0]: worker.versions for run, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    rows = [
        {"framework": run[0], "dropout": run[1], "remat": run[2]}
        | {"to_dropout_jax": harness.quartiles(np.array(seconds) / np.array(times[BASE]))}
        | {"temporary_bytes": built[run]["temporary_bytes"]}
        for run, seconds in times.items()
    ]
    return {"environment": harness.describe_environment(versions), "case": CASE, "rows": rows}


def print_table(rows):
    table = Table(title=f"an encoder block, forward and backward, {CASE['shape']}, 8 heads")
    for name in ("framework", "dropout", "remat", "time, as a multiple", "temporaries, MB"):
        table.add_column(name)
    for row in rows:
        low, middle, high = row["to_dropout_jax"]
        size = row["temporary_bytes"]
        table.add_row(
            *(row["framework"], str(row["dropout"]), "yes" if row["remat"] else "no"),
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            "" if size is None else f"{size / 1e6:.0f}",
        )
    Console(width=100).print(table)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="more rounds")
    results = measure(15 if parser.parse_args().full else 5)
    harness.save(results, "encoder")
    print_table(results["rows"])


if __name__ == "__main__":
    main()
