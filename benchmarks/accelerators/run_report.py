"""What devices ran: a selection of the rows of benchmarks/results/gpu-*.json as tables."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Cells = list[tuple[str, ...]]
Row = dict[str, Any]

CHECK = "python examples/check_gpu.py --only"
PASSES = "forward", "gradient"
ATTENTION_PASSES = "forward", "with backward"
DROPOUT = {
    "dropout_jax": "`dropout_jax.dropout`",
    "bernoulli": "`jax.random.bernoulli`, `where`",
    "flax": "Flax",
    "torch": "PyTorch",
    "x * 2": "x * 2, no dropout",
}
DROPOUT_INPUTS = (
    "8192x4096 bfloat16",
    "8192x4096 float32",
    "8x1024x768 bfloat16",
    "8x1024x768 float32",
)
ATTENTION_INPUTS = (
    "T 1024, dim 64, bfloat16",
    "T 4096, dim 64, bfloat16",
    "T 2048, dim 128, bfloat16",
    "T 2048, dim 64, float32",
)
ATTENTION = {
    "ours, kernel": "dropout_jax, kernel",
    "ours, blockwise": "dropout_jax, blockwise",
    "ours, naive": "dropout_jax, naive",
    "flax": "Flax",
    "jax.nn, xla": "jax.nn, XLA",
    "jax.nn, cudnn": "jax.nn, cuDNN",
    "torch, SDPA": "PyTorch, SDPA",
}
RATES = "0.1", "0.0"
DTYPES = "float32", "bfloat16"


def make_table(header: tuple[str, ...], rows: Cells) -> str:
    """A table in Markdown; figures are aligned to the right."""
    lines = [header, ("---", *("---:",) * (len(header) - 1)), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def run_section(results: Path) -> str:
    """The tables of all files, each with the device, the versions and the commits."""
    files = sorted(results.glob("gpu-*.json"))
    if not files:
        return "Nothing has run on a device yet.\n"
    return "\n".join(part for path in files for part in _device_section(path))


def _device_section(path: Path) -> Iterator[str]:
    content = json.loads(path.read_text())
    rows = content["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    commits = ", ".join(f"`{commit}`" for commit in sorted({row["commit"] for row in rows}))
    yield (
        f"### {content['device']}\n\nWith {versions}; commits {commits}.\n"
        f"This is a selection. All {len(rows)} figures, with quartiles and commits, are in the\n"
        f"[JSON](../benchmarks/results/{path.name}).\n"
    )
    if note := content.get("note"):
        yield textwrap.fill(f"Note: {note.removesuffix('.')}.", 100) + "\n"
    for title, command, explanation, header, cells in _tables(rows):
        if cells:
            yield f"**{title}** {explanation}\n\n    {command}\n\n{make_table(header, cells)}\n"


def _tables(rows: list[Row]) -> Iterator[tuple[str, str, str, tuple[str, ...], Cells]]:
    by_what = {row["what"]: row for row in rows if "what" in row}
    yield (
        "Masks.",
        f"{CHECK} masks dropped",
        "What is dropped, against the NumPy oracle and `keep_mask`; and the tests (see the note).",
        ("Check", "Figure"),
        _mask_cells(rows),
    )
    for dtype in reversed(DTYPES):
        inputs = [each for each in DROPOUT_INPUTS if each.endswith(dtype)]
        columns = [(x, each) for each in inputs for x in PASSES]
        yield (
            f"Dropout, {dtype}.",
            f"{CHECK} dropout",
            "Milliseconds, the median of five. PyTorch's gradient runs its forward pass too.",
            ("", *(f"{each.removesuffix(' ' + dtype)}, {x}" for x, each in columns)),
            [
                (name, *(_figure(by_what, f"{key}, {x}, {each}") for x, each in columns))
                for key, name in DROPOUT.items()
            ],
        )
    for each in ATTENTION_INPUTS:
        cells = [
            (name, rate, *_attention_figures(by_what, f"{key}, {rate}", each))
            for rate in RATES
            for key, name in ATTENTION.items()
        ]
        yield (
            f"Attention, {each}.",
            f"{CHECK} attention",
            "Milliseconds, and MiB of temporaries: 16,384 tokens, 12 heads, causal.\n"
            "cuDNN's has no dropout.",
            ("", "Dropout", "Forward", "MiB", "With backward", "MiB"),
            [row for row in cells if any(row[2:])],
        )
    yield (
        "Training.",
        f"{CHECK} training",
        "One step of the trainer, gpt2 (124M) in bfloat16.",
        ("", "Tokens/s", "Of the peak", "Peak GiB"),
        [
            (row["what"], f"{row['figure']:,}", f"{row['mfu']:.1%}", f"{row['peak_gib']:.1f}")
            for row in rows
            if row["check"] == "training"
        ],
    )
    runs = [row for row in rows if row["check"] == "run"]
    yield (
        "A whole run.",
        runs[0]["command"] if runs else "",
        "Losses over whole texts, at blockwise attention. nanoGPT's README has 1.4697 as its best\n"
        "validation loss with these settings.",
        ("Step", "Training text", "Validation text"),
        [(row["what"], f"{row['train_loss']:.4f}", f"{row['figure']:.4f}") for row in runs],
    )
    yield (
        "Errors of the kernel.",
        f"{CHECK} errors",
        "The largest of all cases: the norm of the error over that of the array,\n"
        "against the naive form with full float32 products; and the naive form's own error.",
        ("", *(f"{x}, {name}" for x in DTYPES for name in ("kernel", "naive"))),
        _error_cells(by_what),
    )


def _figure(by_what: dict[str, Row], what: str, name: str = "figure") -> str:
    value = by_what.get(what, {}).get(name)
    return "" if value is None else f"{value:.3f}" if name == "figure" else f"{value:,.1f}"


def _attention_figures(by_what: dict[str, Row], prefix: str, inputs: str) -> Iterator[str]:
    for each in ATTENTION_PASSES:
        what = f"{prefix}, {each}, {inputs}"
        yield _figure(by_what, what)
        yield _figure(by_what, what, "temporary_mib")


def _mask_cells(rows: list[Row]) -> Cells:
    cells = [
        (row.get("what", row["unit"]), f"{row['figure']} of {row['of']}")
        for row in rows
        if row["check"] in ("masks", "tests")
    ]
    dropped = [row for row in rows if row["check"] == "dropped"]
    total = sum(row["figure"] for row in dropped)
    return cells + ([(f"{dropped[0]['unit']}, {len(dropped)} shapes", str(total))] * bool(dropped))


def _error_cells(by_what: dict[str, Row]) -> Cells:
    worst: dict[tuple[str, str], tuple[float, float]] = {}
    for what, row in by_what.items():
        if row["check"] == "errors":
            *_, dtype, array = what.split(", ")
            ours, naive = worst.get((array, dtype), (0, 0))
            worst[array, dtype] = max(ours, row["figure"]), max(naive, row["naive"])
    arrays = dict.fromkeys(array for array, _ in worst)
    return [
        (x, *(f"{error:.2g}" for dtype in DTYPES for error in worst.get((x, dtype), (0, 0))))
        for x in arrays
    ]
