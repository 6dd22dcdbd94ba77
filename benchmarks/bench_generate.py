"""Tokens per second of text generation in minigpt, nanoGPT's way and with Hugging Face's cache.

    python benchmarks/bench_generate.py [--full]      (with: pip install transformers)

A GPT of the preset shakespeare-char (6 layers x 384, block 256) with random weights samples tokens
after a prompt of one token: within its block, and past it; gpt2 (124M) and a small Llama
(shapes.py) sample within theirs. minigpt reads the last block of tokens for each new one there
(slide), or drops the older half of the block whenever it is full (half);
nanoGPT passes over the window for each token (torch_gpt.py); the model in Transformers gets as many
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

FORMS = {
    "minigpt, slide": ("minigpt", "slide", 1),
    "minigpt, half": ("minigpt", "half", 1),
    "minigpt, half, 16 rows": ("minigpt", "half", 16),
    "nanoGPT": ("torch", "slide", 1),
    "Transformers": ("transformers", "slide", 1),
    "Transformers, 16 rows": ("transformers", "slide", 16),
}
CACHED = {name: FORMS[name] for name in ("minigpt, half", "Transformers")}
CASES = (
    ("shakespeare-char", 250, FORMS),
    ("shakespeare-char", 300, FORMS),
    ("gpt2", 128, CACHED),
    ("llama", 250, CACHED),
)
FULL_CASES = (CASES[0], ("shakespeare-char", 1000, FORMS), *CASES[2:])


def measure(model, tokens, forms, rounds):
    """Rows of tokens per second, and their ratios to the peers and to one row."""
    forms = {name: form for name, form in forms.items() if find_spec(form[0])}
    workers = {name: harness.Worker(form[0]) for name, form in forms.items()}
    for name, worker in workers.items():
        _, window, rows = FORMS[name]
        case = {"op": "generation", "model": model, "tokens": tokens}
        worker.ask(build=case | {"rows": rows, "window": window})
    seconds = {name: [] for name in forms}
    for _ in track(range(rounds), f"{model}, {tokens} tokens"):
        for name, worker in workers.items():
            seconds[name] += worker.ask(calls=1)["seconds"]
    versions = {FORMS[name][0]: worker.versions for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    speeds = {name: FORMS[name][2] * tokens / np.array(times) for name, times in seconds.items()}
    rows = [
        {"model": model, "tokens": tokens, "form": name, "tokens_per_s": harness.quartiles(speed)}
        | {
            f"to {other}": harness.quartiles(speed / speeds[other])
            for other in ("nanoGPT", "Transformers", "minigpt, half")
            if other in forms
        }
        for name, speed in speeds.items()
    ]
    return rows, versions


def print_table(rows):
    table = Table(title="sampling: medians (quartiles)")
    columns = ("tokens_per_s", "to nanoGPT", "to Transformers", "to minigpt, half")
    for name in ("model", "tokens", "form", *columns):
        table.add_column(name)
    for row in rows:
        quartiles = [row.get(name) for name in columns]
        cells = [f"{q[1]:.1f} ({q[0]:.1f}-{q[2]:.1f})" if q else "" for q in quartiles]
        table.add_row(row["model"], str(row["tokens"]), row["form"], *cells)
    Console(width=140).print(table)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="more tokens and rounds")
    full = parser.parse_args().full
    rows, versions = [], {}
    for case in FULL_CASES if full else CASES:
        new_rows, new_versions = measure(*case, 5 if full else 3)
        rows, versions = rows + new_rows, versions | new_versions
    harness.save({"environment": harness.describe_environment(versions), "rows": rows}, "generate")
    print_table(rows)


if __name__ == "__main__":
    main()
