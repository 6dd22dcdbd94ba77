"""docs/accelerators.md from the rows: what is compiled, and what has run on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

INTRODUCTION = """\
# Accelerators

Three words on this page have one meaning each.

- **Compiled**: the compiler for the device accepted the program, and the figures are what it says
  of it. No device was there.
- **Simulated**: an interpreter ran the program as the device would, on a CPU.
- **Run**: a device ran it. Only these figures are measurements.

`make accelerators` writes this page and `benchmarks/results/accelerators.json`, with the versions
of `benchmarks/accelerators/pins.txt`; `make accelerators FULL=--full` compiles the large programs
too. It fails if a program does not compile, if its peak memory exceeds the stated bound, if dropout
changes the collectives of a mesh, if a collective carries a mask, if XLA replicates an array as its
last resort ("involuntary full rematerialization"), or if a bfloat16 op or attention on an H100
spills registers.
"""

NOTES = """\
An op and attention are forward and backward in one program, at a rate of 0.1. CPU s is the time to
compile. Peak is the largest memory of one device in MiB, and Bound what it must not exceed.
Collectives are counted by channel: all-gather (AG), all-reduce (AR), all-to-all (AA),
collective-permute (CP), reduce-scatter (RS). Cycles are estimated by XLA:TPU, and the body of a
loop counts once. Registers (the most per thread), shared memory and spills (bytes) are ptxas's.
"""

HEADER = (
    *("Device", "Program", "CPU s", "Peak", "Bound", "Collectives", "Cycles"),
    *("Registers", "Shared", "Spills", "Command"),
)
SHORT_NAMES = {
    "all-gather": "AG",
    "all-reduce": "AR",
    "all-to-all": "AA",
    "collective-permute": "CP",
    "reduce-scatter": "RS",
}


def render(rows: list[dict[str, Any]], results: Path) -> str:
    """The page; `results` is the folder of the gpu-*.json files."""
    cells = [_cells(row) for row in rows]
    total = round(sum(row["cpu_s"] for row in rows))
    return "\n".join(
        [
            INTRODUCTION,
            f"## Compiled\n\n{NOTES}\n{len(rows)} programs, {total} s of CPU.\n",
            _table(HEADER, cells),
            f"\n## Run\n\n{_run_section(results)}",
        ]
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    calls = row.get("collectives") or {}
    names = ("peak_mib", "bound_mib")
    gpu = ("registers", "shared_bytes", "spill_bytes")
    return (
        row["device"],
        f"{row['kind']}: {row['program']}" + (" **fails to compile**" if "error" in row else ""),
        f"{row['cpu_s']:.1f}",
        *(f"{row[name]:.4g}" if name in row else "" for name in names),
        ", ".join(f"{count} {SHORT_NAMES[kind]}" for kind, count in calls.items()),
        f"{row['cycles']:,}" if row.get("cycles") else "",
        *(str(row.get(name, "")) for name in gpu),
        f"`{row['command']}`",
    )


def _run_section(results: Path) -> str:
    """What devices did, from files with a "device" and rows of what, figure, unit and command."""
    files = sorted(results.glob("gpu-*.json"))
    if not files:
        return "Nothing has run on a device yet.\n"
    cells = []
    for path in files:
        content = json.loads(path.read_text())
        for row in content["rows"]:
            figure = f"{row['figure']} {row['unit']}".strip()
            cells.append((content["device"], row["what"], figure, f"`{row['command']}`"))
    return _table(("Device", "What", "Figure", "Command"), cells) + "\n"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
