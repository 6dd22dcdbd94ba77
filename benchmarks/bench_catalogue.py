"""The cost of each op, compared with `dropout` and with a multiplication; one row for each op.

    python benchmarks/bench_catalogue.py [--full]      (make bench runs the short form)

Forward, and forward and backward, at rate 0.1 on (16, 256, 1024) float32: ops that draw a mask of
every element compare with `dropout`, ops with small masks with x * 2, the floor. Flax and PyTorch
are measured where they have the op (PyTorch on a CPU). Writes results/catalogue-DEVICE.json.
"""

import argparse

import harness
import jax
from rich.console import Console
from rich.table import Table

OPS = {
    "dropout": "every element",
    "dropout_unscaled": "every element",
    "alpha_dropout": "every element",
    "gaussian_dropout": "noise",
    "drop_connect": "every element",
    "drop_block": "every element",
    "spatial_dropout": "small",
    "locked_dropout": "small",
    "token_dropout": "small",
    "embedding_dropout": "small",
    "head_dropout": "small",
    "drop_path": "small",
}
FRAMEWORKS = ("dropout_jax", "flax", "torch")
MODES = ("forward", "backward")


def make_cases():
    return [
        {"op": op, "mode": mode, "shape": [16, 256, 1024], "dtype": "float32", "rate": 0.1}
        for op in OPS
        for mode in MODES
    ]


def print_table(result):
    """Multiples of the floor and of our own dropout."""
    rows = {(r["op"], r["mode"], r["framework"]): r["to_floor"][1] for r in result["rows"]}
    table = Table(title="times the floor (and times `dropout`), rate 0.1, (16, 256, 1024) float32")
    table.add_column("op")
    table.add_column("mask")
    for mode in MODES:
        for name in FRAMEWORKS:
            table.add_column(f"{name} {mode}", justify="right")
    for op, mask in OPS.items():
        cells = []
        for mode in MODES:
            for name in FRAMEWORKS:
                value = rows.get((op, mode, name))
                to_dropout = f" ({value / rows['dropout', mode, name]:.2f})" if value else ""
                cells.append(f"{value:.2f}{to_dropout}" if value else "-")
        table.add_row(op, mask, *cells)
    Console(width=140).print(table)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="more rounds")
    full = parser.parse_args().full
    frameworks = FRAMEWORKS if jax.default_backend() == "cpu" else FRAMEWORKS[:-1]
    result = harness.measure(
        frameworks, make_cases(), rounds=15 if full else 5, budget_s=0.2 if full else 0.05
    )
    harness.save(result, "catalogue")
    print_table(result)


if __name__ == "__main__":
    main()
