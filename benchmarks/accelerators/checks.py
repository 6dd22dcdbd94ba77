"""What must hold of the rows, and which do not hold."""

from __future__ import annotations

import collections
import json
import signal
from typing import Any

COMPILING = "compiling: "
"""what compile.py writes between the compilers' logs, before each program and what names it"""

LARGEST_BATCH = "largest batch"

LIMITS_S = {
    "op": 40,
    "dropout": 120,
    "attention": 40,
    "step": 600,
    "generation": 120,
    LARGEST_BATCH: 600,
}
"""of CPU for one program by its kind; those of the short form take a part of it"""
SPILLS_IN_FLOAT32 = 128  # bytes

Row = dict[str, Any]


def failures(rows: list[Row]) -> list[str]:
    """One line for each check that fails; empty if all hold."""
    return [
        f"{row['device']} {row['kind']} {row['program']}: {reason}"
        for row in rows
        for reason in _row_failures(row)
    ] + [*_group_failures(rows), *_cycle_failures(rows)]


def count_rematerializations(log: str) -> dict[str, int]:
    """Count XLA's warnings that it replicates an array as a last resort, by program's command."""
    command, counts = "", collections.Counter[str]()
    for line in log.splitlines():
        if line.startswith(COMPILING):
            command = json.loads(line.removeprefix(COMPILING))["command"]
        counts[command] += "Involuntary full rematerialization" in line
    return dict(counts)


def last_program(log: str) -> Row | None:
    """The program that was being compiled when the log ends."""
    lines = [line for line in log.splitlines() if line.startswith(COMPILING)]
    return json.loads(lines[-1].removeprefix(COMPILING)) if lines else None


def explain_end(code: int, kind: str) -> str:
    """Say how a process ended; the code is the negative number of a signal, if one ended it."""
    if code == -signal.SIGXCPU:
        return f"the compiler does not finish in {LIMITS_S[kind]} s of CPU"
    return f"the compiler ends its process with {code}"


def _row_failures(row: Row) -> list[str]:
    if "error" in row:
        return [f"does not compile: {row['error']}"]
    if row["kind"] == LARGEST_BATCH:
        return [] if row["batch_size"] else ["no batch fits"]
    reasons = []
    if row["peak_mib"] > row["bound_mib"]:
        reasons.append(f"peak memory of {row['peak_mib']} MiB, bound {row['bound_mib']}")
    if row["mask_collectives"]:
        reasons.append(f"{row['mask_collectives']} collectives carry a mask")
    if row.get("rematerializations"):
        reasons.append(f"{row['rematerializations']} involuntary full rematerializations")
    if row.get("has_collectives") is False and row["collectives"]:
        reasons.append(f"collectives where each device has its part: {row['collectives']}")
    if row.get("whole_arrays") not in (None, row.get("arrays_written")):
        written, expected = row["arrays_written"], row["whole_arrays"]
        reasons.append(f"{written} arrays of the argument's size are written, not {expected}")
    expected, kernels = row.get("expected_kernels", 0), row.get("kernels", 0)
    if kernels < expected:
        reasons.append(f"{kernels} kernels are compiled, and {expected} were expected")
    reasons += _spill_failures(row)
    return reasons


def _spill_failures(row: Row) -> list[str]:
    spilled, dtype = row.get("spill_bytes", 0), "bfloat16"
    allowed = 0
    if dtype not in row["program"]:
        dtype, allowed = "float32", SPILLS_IN_FLOAT32
    return [f"{spilled} bytes of spills in {dtype}"] if spilled > allowed else []


def _group_failures(rows: list[Row]) -> list[str]:
    """Programs of a group, which differ by dropout, have the same collectives."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.get("group") and "error" not in row:
            groups.setdefault((row["device"], row["group"]), []).append(row)
    return [
        f"{device} {group}: dropout changes the collectives: {[row['collectives'] for row in same]}"
        for (device, group), same in groups.items()
        if any(row["collectives"] != same[0]["collectives"] for row in same)
    ]


def _cycle_failures(rows: list[Row]) -> list[str]:
    """A program takes no more cycles, by the compiler's estimate, than its rival."""
    cycles = {(row["device"], row["program"]): row.get("cycles") for row in rows}
    return [
        f"{row['device']} {row['program']}: {row.get('cycles')} cycles, {row['rival']}: {most}"
        for row in rows
        if row.get("rival") and (most := cycles[row["device"], row["rival"]])
        if (row.get("cycles") or 0) > most
    ]
