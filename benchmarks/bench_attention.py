"""Attention with dropout: time and temporaries against the length, for us and other libraries.

    python benchmarks/bench_attention.py [--full]      (make bench runs the short form)

Causal, forward and backward, batch 8, 8 heads of 64, float32; each in its own process, in turn.
Times are multiples of those of PyTorch's flash attention without dropout. Writes
results/attention-DEVICE.json and docs/bench_attention-DEVICE.png, and prints the table. On an
accelerator (bfloat16, up to 16,384) it adds the kernel and leaves torch out.
"""

import argparse
from pathlib import Path

import harness
import jax
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

RUNS = {
    "ours, dropout 0.1": ("blockwise", 0.1),
    "ours, no dropout": ("blockwise", 0.0),
    "naive, dropout 0.1": ("naive", 0.1),
    "flax, dropout 0.1": ("flax", 0.1),
    "torch SDPA, dropout 0.1": ("torch", 0.1),
    "torch flash, no dropout": ("torch", 0.0),
}
BASE = "torch flash, no dropout"
COLORS = {  # Okabe and Ito's
    "ours": "#D55E00",
    "kernel": "#000000",
    "naive": "#0072B2",
    "flax": "#CC79A7",
    "torch SDPA": "#009E73",
    "torch flash": "#009E73",
}


def measure(length, dtype, runs, base, rounds):
    """A row for each run: quartiles of the ratio to the base, and the temporaries."""
    rows = []
    workers = {name: harness.Worker(framework) for name, (framework, _) in runs.items()}
    bytes_of = {
        name: worker.ask(build=make_case(length, dtype, runs[name][1]))["temporary_bytes"]
        for name, worker in workers.items()
    }
    times = {name: [] for name in runs}
    for _ in track(range(rounds), f"length {length}"):
        for name, worker in workers.items():
            times[name].append(np.median(worker.ask(calls=3 if length < 1024 else 1)["seconds"]))
    for name, seconds in times.items():
        ratio = harness.quartiles(np.array(seconds) / np.array(times[base]))
        row = {"length": length, "run": name, "to_base": ratio}
        rows.append(row | {"temporary_bytes": bytes_of[name]})
    versions = {runs[name][0]: worker.versions for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    return rows, versions


def make_case(length, dtype, rate, batch=8):
    return {"op": "attention", "shape": [batch, length, 8, 64], "dtype": dtype, "rate": rate}


def measure_long(length=16_384):
    """Temporaries at a length where T x T weights of 8 heads, forward only, take 8.6 GB."""
    worker = harness.Worker("blockwise")
    answer = worker.ask(build=make_case(length, "float32", 0.1, batch=1))
    worker.close()
    return {"length": length, "batch": 1, "temporary_bytes": answer["temporary_bytes"]}


def print_table(rows, base):
    table = Table(title=f"times {base} (temporaries, MB)")
    lengths = sorted({row["length"] for row in rows})
    for name in ("", *map(str, lengths)):
        table.add_column(name, justify="right")
    for run in dict.fromkeys(row["run"] for row in rows):
        cells = []
        for row in sorted((r for r in rows if r["run"] == run), key=lambda r: r["length"]):
            megabytes = row["temporary_bytes"]
            suffix = "" if megabytes is None else f" ({megabytes / 1e6:,.0f})"
            cells.append(f"{row['to_base'][1]:.2f}{suffix}")
        table.add_row(run, *cells)
    Console(width=120).print(table)


def plot(rows, base, path):
    """Time and temporaries against the length, legible at a phone's width."""
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    lengths = sorted({row["length"] for row in rows})
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = sorted((row for row in rows if row["run"] == run), key=lambda row: row["length"])
        measured = [row["length"] for row in mine]
        style = {"color": COLORS[run.partition(",")[0]], "ms": 7, "lw": 2.5}
        style["ls"] = "-" if "dropout 0.1" in run else "--"
        left.plot(measured, [row["to_base"][1] for row in mine], "o", label=run, **style)
        if mine[0]["temporary_bytes"]:
            megabytes = [row["temporary_bytes"] / 1e6 for row in mine]
            right.plot(measured, megabytes, "o", **style)
    left.set_title(f"time, {base.partition(',')[0]} = 1", fontsize=16)
    right.set_title("temporaries, MB", fontsize=16)
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("length", fontsize=17)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()
        axes.tick_params(labelsize=15)
        axes.grid(alpha=0.3)
    left.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=16)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="longer, and more rounds")
    full = parser.parse_args().full
    if jax.default_backend() == "cpu":
        runs, base, dtype = RUNS, BASE, "float32"
        lengths = (256, 512, 1024, 2048) if full else (256, 512)
    else:
        own = {"kernel, dropout 0.1": ("kernel", 0.1), "kernel, no dropout": ("kernel", 0.0)}
        runs = own | {name: run for name, run in RUNS.items() if run[0] != "torch"}
        base, dtype, lengths = "kernel, no dropout", "bfloat16", (1024, 4096, 16_384)
    rows, versions = [], {}
    for length in lengths:
        new_rows, versions = measure(length, dtype, runs, base, rounds=9 if full else 5)
        rows += new_rows
    result = {"environment": harness.describe_environment(versions), "base": base, "rows": rows}
    if full:
        result["long"] = measure_long()
        print(result["long"])
    path = harness.save(result, "attention")
    print_table(rows, base)
    plot(rows, base, Path(__file__).parent.parent / "docs" / f"bench_{path.stem}.png")


if __name__ == "__main__":
    main()
