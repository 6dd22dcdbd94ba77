"""Tokens per second of text generation in minigpt, nanoGPT's way and with Hugging Face's cache.

    python benchmarks/bench_generate.py [--full]      (with: pip install transformers)

A GPT of the preset shakespeare-char (6 layers x 384, block 256) with random weights samples tokens
after a prompt of one token: within its block, and past it. minigpt reads the last block of tokens
for each new one there (slide), or drops the older half of the block whenever it is full (half);
nanoGPT passes over the window for each token (torch_gpt.py); GPT-2 in Transformers gets as many
positions as there are tokens and keeps all their keys and values. Each form has its own process, in
turn; ratios are round by round. Writes results/generate-DEVICE.json and prints the table.
"""

import argparse
from importlib.util import find_spec

import harness
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

PRESET = "shakespeare-char"
FORMS = {
    "minigpt, slide": ("minigpt", "slide", 1),
    "minigpt, half": ("minigpt", "half", 1),
    "minigpt, half, 16 rows": ("minigpt", "half", 16),
    "nanoGPT": ("torch", "slide", 1),
    "Transformers": ("transformers", "slide", 1),
    "Transformers, 16 rows": ("transformers", "slide", 16),
}


def measure(tokens, rounds):
    """Rows of tokens per second, and their ratios to the peers and to one row."""
    forms = {name: form for name, form in FORMS.items() if find_spec(form[0])}
    workers = {name: harness.Worker(form[0]) for name, form in forms.items()}
    for name, worker in workers.items():
        _, window, rows = FORMS[name]
        case = {"op": "generation", "preset": PRESET, "tokens": tokens}
        worker.ask(build=case | {"rows": rows, "window": window})
    seconds = {name: [] for name in forms}
    for _ in track(range(rounds), f"{tokens} tokens"):
        for name, worker in workers.items():
            seconds[name] += worker.ask(calls=1)["seconds"]
    versions = {FORMS[name][0]: worker.versions for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    speeds = {name: FORMS[name][2] * tokens / np.array(times) for name, times in seconds.items()}
    rows = [
        {"tokens": tokens, "form": name, "tokens_per_s": harness.quartiles(speed)}
        | {
            f"to {other}": harness.quartiles(speed / speeds[other])
            for other in ("nanoGPT", "Transformers", "minigpt, half")
            if other in forms
        }
        for name, speed in speeds.items()
    ]
    return rows, versions


def print_table(rows):
    table = Table(title=f"sampling from {PRESET}: medians (quartiles)")
    columns = ("tokens_per_s", "to nanoGPT", "to Transformers", "to minigpt, half")
    for name in ("tokens", "form", *columns):
        table.add_column(name)
    for row in rows:
        quartiles = [row.get(name) for name in columns]
        cells = [f"{q[1]:.1f} ({q[0]:.1f}-{q[2]:.1f})" if q else "" for q in quartiles]
        table.add_row(str(row["tokens"]), row["form"], *cells)
    Console(width=140).print(table)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="more tokens and rounds")
    full = parser.parse_args().full
    rows, versions = [], {}
    for tokens in (250, 1000) if full else (250, 300):
        new_rows, versions = measure(tokens, 5 if full else 3)
        rows += new_rows
    harness.save({"environment": harness.describe_environment(versions), "rows": rows}, "generate")
    print_table(rows)


if __name__ == "__main__":
    main()
