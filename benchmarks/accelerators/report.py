"""docs/accelerators.md from the rows: what is compiled, and what has run on a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checks import LIMITS_S, SPILLS_IN_FLOAT32
from run_report import make_table, run_section

INTRODUCTION = """\
# Accelerators

Three words on this page have one meaning each.

- **Compiled**: the compiler for the device accepted the program, and the figures are what it says
  of it. No device was there.
- **Simulated**: an interpreter ran the program as the device would, on a CPU.
- **Run**: a device ran it. Only these figures are measurements.

`make accelerators` compiles a selection in less than five minutes of CPU, and writes this page and
[its JSON](../benchmarks/results/accelerators.json). `make accelerators FULL=--full` compiles
everything. The versions are those of `benchmarks/accelerators/pins.txt`.

It fails if

- a program does not compile, or takes its compiler more than {limits[attention]} s of CPU (a step
  {limits[step]} s);
- the peak memory of a program exceeds its bound;
- dropout changes the collectives of a training step on a mesh;
- a collective carries a mask, or attention with batch and heads sharded has a collective;
- XLA replicates an array as its last resort ("involuntary full rematerialization");
- dropout takes more cycles on a v5e than `jax.random.bernoulli` by XLA:TPU's estimate, or gelu,
  dropout and add are more than one kernel;
- attention by a kernel is compiled without one, as the interpreter would be;
- a bfloat16 op or attention on an H100 spills registers, or a float32 one more than {spills} bytes.
"""

NOTES = """\
An op and attention are forward and backward in one program, at a dropout rate of 0.1; attention is
causal. A step is one of training. To compile one row of a table alone, give its first column:

    {command}

- CPU s: seconds to compile; more where other programs use the machine too.
- Peak, Bound: the memory of one device in MiB, and what it must not exceed.
- Collectives, by channel: all-gather (AG), all-reduce (AR), all-to-all (AA), collective-permute
  (CP), reduce-scatter (RS).
- Cycles: XLA:TPU's estimate. The body of a loop counts once, and a kernel of Pallas not at all.
- Registers (of a thread), Shared (memory, bytes), Spills (bytes of a thread): the largest of the
  program's kernels, by ptxas and XLA.
"""

LARGE = """\
`make accelerators FULL=--full` compiles these in some hours and goes on where it was stopped; the
rows so far are of commits {commits}. Add `--full` to the command of a row.
"""

SIMULATED = """\
Interpreters run both attention kernels in `make test`: against the naive form, with the set of
dropped weights bit for bit that of `keep_mask`. The TPU's interpreter also looks for races, and a
kernel with a race on purpose makes it report one.

    pytest tests/dropout_jax/attention
"""

MEMORY = ("peak_mib", "Peak"), ("bound_mib", "Bound")
GPU = ("registers", "Registers"), ("shared_bytes", "Shared"), ("spill_bytes", "Spills")
COLUMNS = {
    "cpu_s": "CPU s",
    **dict(MEMORY),
    "collectives": "Collectives",
    "cycles": "Cycles",
    **dict(GPU),
}
SHORT_NAMES = {
    "all-gather": "AG",
    "all-reduce": "AR",
    "all-to-all": "AA",
    "collective-permute": "CP",
    "reduce-scatter": "RS",
}
VENVS = {"h100": ".venv-cuda"}

Row = dict[str, Any]


def render(rows: list[Row], large: list[Row], results: Path) -> str:
    """The page; `results` is the folder of the gpu-*.json files."""
    total = round(sum(row["cpu_s"] for row in rows))
    commits = ", ".join(f"`{commit}`" for commit in sorted({row["commit"] for row in large}))
    parts = [
        INTRODUCTION.format(limits=LIMITS_S, spills=SPILLS_IN_FLOAT32),
        "## Run\n",
        run_section(results),
        f"## Simulated\n\n{SIMULATED}",
        f"## Compiled\n\n{NOTES.format(command=_command('v5e'))}",
        f"{len(rows)} programs, {total} s of CPU.\n",
        *_device_sections(rows),
    ]
    if large:
        parts += [f"## Compiled with --full\n\n{LARGE.format(commits=commits)}"]
        parts += _device_sections(large)
    return "\n".join(parts)


def _device_sections(rows: list[Row]) -> Iterator[str]:
    by_device: dict[str, list[Row]] = {}
    for row in rows:
        by_device.setdefault(row["device"], []).append(row)
    return (_device_section(device, of_device) for device, of_device in by_device.items())


def _command(device: str) -> str:
    venv = VENVS.get(device, ".venv-tpu")
    return f'{venv}/bin/python benchmarks/accelerators/compile.py {device} --only "PROGRAM"'


def _device_section(device: str, rows: list[Row]) -> str:
    columns = [name for name in COLUMNS if any(row.get(name) for row in rows)]
    table = [
        (_label(row), *(_format_cell(name, row.get(name)) for name in columns)) for row in rows
    ]
    parts = [
        f"### {device}\n\n    {_command(device)}\n",
        make_table(("Program", *(COLUMNS[name] for name in columns)), table),
    ]
    if kernels := list(_kernel_cells(rows)):
        parts.append("\nThe attention kernels of these programs:\n")
        header = ("Program", "Kernel", *(name for _, name in GPU))
        parts.append(make_table(header, kernels))
    return "\n".join(parts) + "\n"


def _label(row: Row) -> str:
    label = f"{row['kind']} {row['program']}"
    return label + " **fails to compile**" if "error" in row else label


def _format_cell(name: str, value: Any) -> str:
    if value is None or value == {}:
        return ""
    if name == "collectives":
        return ", ".join(f"{count} {SHORT_NAMES[kind]}" for kind, count in value.items())
    if name in dict(MEMORY):
        return f"{value:.4g}"
    return f"{value:.1f}" if name == "cpu_s" else f"{value:,}"


def _kernel_cells(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        for kernel, figures in row.get("attention_kernels", {}).items():
            yield row["program"], kernel, *(f"{figures[name]:,}" for name, _ in GPU)
