"""Run each framework's dropout and write a page that compares them, with a picture.

    python examples/frameworks/compare_frameworks.py [--out docs/frameworks.md] [--small]

The run measures every table except the last, which says so. frameworks.py has the calls of each
framework, framework_tables.py the measurements; a framework that is not installed has a row that
says so. Seeds are fixed, so the same versions give the same page.
"""

import argparse
from importlib import metadata
from pathlib import Path

import jax
from matplotlib.figure import Figure
from rich.progress import track
from tabulate import tabulate

import frameworks
from framework_tables import OURS, RATE, RATES, TABLES

PACKAGES = ("dropout-jax", "jax", "numpy", "flax", "equinox", "dm-haiku", "keras", "torch")


def list_versions():
    def find_version(package):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    return ", ".join(f"{package} {find_version(package)}" for package in PACKAGES)


def summarize(data):
    """Summarize the page in three lines."""

    def describe_others(numbers):
        numbers = sorted(numbers[name] for name in numbers if name not in OURS)
        return f"{numbers[0]:+.3g} to {numbers[-1]:+.3g}" if numbers else "not installed"

    promised = [row for row in data["Bit equality"] if row[2] == "yes"]
    bias = {name: 100 * row["bfloat16"] for name, row in data["Bias of the scale"].items()}
    kept = {name: row[0] for name, row in data["Memory kept for the backward pass"].items()}
    return (
        f"- Where equality is promised, {sum(row[3] for row in promised):,} elements were compared "
        f"and {sum(row[4] for row in promised):,} differ.\n"
        f"- In bfloat16 at rate {RATE} ours is off by {bias['dropout_jax']:+.3f} per cent "
        f"in the mean, the others by {describe_others(bias)}.\n"
        f"- The backward pass keeps {kept['dropout_jax']:.3g} bytes an element of ours in float32, "
        f"of the others {describe_others(kept).replace('+', '')}."
    )


def render_page(tables, picture, small):
    command = "python examples/frameworks/compare_frameworks.py" + (" --small" if small else "")
    parts = [
        "# The same dropout in eight frameworks",
        f"`{command}` writes this page; it runs the libraries on a CPU: {list_versions()}. Seeds "
        "are fixed. The page has no timings; docs/benchmarks.md has them.",
        summarize({table.title: table.data for table in tables}),
        f"![Kept share, bias of the scale and memory, by framework]({picture.name})",
    ]
    for number, table in enumerate(tables, 1):
        parts += [
            f"## {number}. {table.title}",
            table.says,
            tabulate(table.rows, table.headers, tablefmt="github", disable_numparse=True),
        ]
    return "\n\n".join(parts) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/frameworks.md"))
    parser.add_argument("--small", action="store_true", help="fewer and smaller arrays")
    options = parser.parse_args(arguments)
    with jax.numpy_dtype_promotion("standard"):  # some peers rely on it
        peers = frameworks.load_peers()
        tables = [table(peers, options.small) for table in track(TABLES, "measuring")]
    picture = options.out.with_suffix(".png")
    draw(tables, picture)
    options.out.write_text(render_page(tables, picture, options.small))
    print(f"wrote {options.out} and {picture}")
    return tables


def draw(tables, path):
    """Draw kept share, bias in bfloat16 and bytes kept by framework, without the oracle."""
    data = {table.title: table.data for table in tables}
    names = [name for name in data["Kept fraction"] if name != "NumPy oracle"][::-1]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    shares, bias, memory = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))
    rows = range(len(names))
    for number, rate in enumerate(RATES):
        kept_by_framework = [data["Kept fraction"][name][number] for name in names]
        share = [100 * (share - (1 - rate)) for _, share, _ in kept_by_framework]
        ends = [
            [100 * (s - low) for low, s, _ in kept_by_framework],
            [100 * (high - s) for _, s, high in kept_by_framework],
        ]
        heights = [row + 0.27 - 0.18 * number for row in rows]
        shares.errorbar(share, heights, xerr=ends, fmt="o", markersize=4, label=f"rate {rate}")
    shares.axvline(0, color="black", linewidth=0.8)
    shares.set(title="kept - promised, with its interval", xlabel="per cent of all elements")
    shares.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    biases = [100 * data["Bias of the scale"][name]["bfloat16"] for name in names]
    bias.barh(rows, biases, height=0.6)
    bias.axvline(0, color="black", linewidth=0.8)
    bias.set(title=f"bias in bfloat16, rate {RATE}", xlabel="per cent")
    bytes_kept = [data["Memory kept for the backward pass"][name][0] for name in names]
    memory.bar_label(memory.barh(rows, bytes_kept, height=0.6), fmt="%.3g", padding=3)
    memory.set(title="kept for the backward pass", xlabel="bytes an element, float32", xlim=(0, 6))
    shares.set_yticks(rows, names)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
