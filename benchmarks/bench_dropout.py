"""How fast is dropout? Every framework over sizes, as a multiple of one pass over memory.

    python benchmarks/bench_dropout.py [--full]      (make bench runs the short form)

Forward, and forward and backward, at rate 0.1, against a jitted x * 2 (and its backward) over the
same array in the same process, each framework in its own process, in turn; and the usual block,
gelu -> dropout -> add the residual, against the same without dropout. Writes
results/dropout-DEVICE.json and docs/bench_dropout-DEVICE.png, and prints the table. On an
accelerator it runs unchanged; torch is measured there only on its own device, so it is left out.
"""

import argparse
import math
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from dropout_jax import dropout, fold

FRAMEWORKS = ("dropout_jax", "flax", "equinox", "haiku", "keras", "torch")
WIDTH, RATE = 1024, 0.1
SHORT, FULL = (1, 10, 100, 1024, 16_384), (1, 10, 100, 1024, 4096, 16_384, 65_536)
LABELS = {"forward": "forward", "backward": "forward and backward"}


def make_cases(rows_of, dtypes):
    """Every size of dropout in every dtype, and the block; forward, and forward and backward."""
    sizes = [("dropout", rows, dtype) for dtype in dtypes for rows in rows_of]
    return [
        {"op": op, "mode": mode, "shape": [rows, WIDTH], "dtype": dtype, "rate": RATE}
        for op, rows, dtype in [*sizes, ("gelu_dropout_add", 2048, "float32")]
        for mode in LABELS
    ]


def measure_memory():
    """Bytes an element: the residual, and the temporaries of a stack of twelve layers."""
    x, key = jnp.ones((2048, WIDTH)), jax.random.key(0)
    layer = nnx.Dropout(RATE, deterministic=False)
    drops = {
        "dropout_jax": lambda x, k: dropout(x, RATE, key=k),
        "flax": lambda x, k: layer(x, rngs=k),
    }
    bytes_by_framework = {}
    for name, drop in drops.items():

        def stack(x, key, drop=drop):
            for i in range(12):
                x = jnp.tanh(drop(x, fold(key, i)))
            return x

        _, pullback = jax.vjp(lambda x, drop=drop: drop(x, key), x)
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pullback))
        analysis = jax.jit(stack).lower(x, key).compile().memory_analysis()
        assert analysis is not None, "XLA reports no memory here"
        bytes_by_framework[name] = {
            "residual_bytes_an_element": kept / x.size,
            "stack_of_12_forward_temporary_bytes_an_element": analysis.temp_size_in_bytes / x.size,
        }
    return bytes_by_framework


def print_table(result):
    """Print the median multiple of the floor, a row for each case."""
    table = Table(title=f"times the floor, rate {RATE}, {result['environment']['processor']}")
    for name in ("op", "dtype", "mode", "elements", *FRAMEWORKS):
        table.add_column(name, justify="right")
    by_case = {}
    for row in result["rows"]:
        case = (row["op"], row["dtype"], LABELS[row["mode"]], f"{math.prod(row['shape']):,}")
        by_case.setdefault(case, {})[row["framework"]] = f"{row['to_floor'][1]:.2f}"
    for case, cells in sorted(by_case.items(), key=lambda item: item[0][:3]):
        table.add_row(*case, *(cells.get(name, "-") for name in FRAMEWORKS))
    Console(width=140).print(table)


def plot(result, path):
    """Draw multiples of the floor against size, on logarithmic axes."""
    rows_of = [row for row in result["rows"] if row["op"] == "dropout"]
    dtypes = sorted({row["dtype"] for row in rows_of}, reverse=True)
    figure = Figure(figsize=(10, 3.6 * len(dtypes)), layout="constrained")
    grid = figure.subplots(len(dtypes), 2, squeeze=False, sharex=True, sharey=True)
    colours = {"dropout_jax": "tab:red"}
    for line, dtype in zip(grid, dtypes, strict=True):
        for axes, mode in zip(line, LABELS, strict=True):
            for i, name in enumerate(FRAMEWORKS):
                rows = [
                    row
                    for row in rows_of
                    if (row["framework"], row["dtype"], row["mode"]) == (name, dtype, mode)
                ]
                size = [row["shape"][0] * row["shape"][1] for row in rows]
                low, middle, high = zip(*(row["to_floor"] for row in rows), strict=True)
                colour = colours.get(name, f"C{i + 4 if i > 2 else i}")
                axes.plot(size, middle, "o-", ms=3, label=name, color=colour)
                axes.fill_between(size, low, high, alpha=0.15, color=colour)
            axes.axhline(1, color="0.3", lw=0.8, ls="--")
            axes.set(xscale="log", yscale="log", title=f"{LABELS[mode]}, {dtype}")
            axes.set_ylabel("times a pass over memory")
            axes.set_xlabel("elements")
            axes.grid(alpha=0.3, which="both")
    grid[0][0].legend(frameon=False, fontsize=8, ncols=2)
    environment = result["environment"]
    figure.suptitle(
        f"dropout at rate {RATE}; dashed: x * 2.  {environment['processor']}, "
        f"{environment['cores']} cores, "
        f"huge pages {'on' if 'hugetlb=1' in environment['glibc_tunables'] else 'off'}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="all sizes, more rounds")
    full = parser.parse_args().full
    on_cpu = jax.default_backend() == "cpu"
    frameworks = FRAMEWORKS if on_cpu else FRAMEWORKS[:-1]
    result = harness.measure(
        frameworks,
        make_cases(FULL if full else SHORT, ("float32", "bfloat16")),
        rounds=11 if full else 5,
        budget_s=0.2 if full else 0.05,
    )
    result |= {"memory": measure_memory()}
    path = harness.save(result, "dropout")
    print_table(result)
    plot(result, Path(__file__).parent.parent / "docs" / f"bench_{path.stem}.png")


if __name__ == "__main__":
    main()
