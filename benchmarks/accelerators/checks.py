"""What must hold of the rows, and which do not hold."""

from __future__ import annotations

import collections
from typing import Any

COMPILING = "compiling: "
"""what compile.py writes between the compilers' logs, before each program"""

Row = dict[str, Any]


def failures(rows: list[Row]) -> list[str]:
    """One line for each check that fails; empty if all hold."""
    return [
        f"{row['device']} {row['kind']} {row['program']}: {reason}"
        for row in rows
        for reason in _row_failures(row)
    ] + _group_failures(rows)


def count_rematerializations(log: str) -> dict[str, int]:
    """Count XLA's warnings that it replicates an array as a last resort, by program."""
    label, counts = "", collections.Counter[str]()
    for line in log.splitlines():
        if line.startswith(COMPILING):
            label = line.removeprefix(COMPILING)
        counts[label] += "Involuntary full rematerialization" in line
    return dict(counts)


def _row_failures(row: Row) -> list[str]:
    if "error" in row:
        return [f"does not compile: {row['error']}"]
    if row["kind"] == "largest batch":
        return [] if row["batch_size"] else ["no batch fits"]
    reasons = []
    if row["peak_mib"] > row["bound_mib"]:
        reasons.append(f"peak memory of {row['peak_mib']} MiB, bound {row['bound_mib']}")
    if row["mask_collectives"]:
        reasons.append(f"{row['mask_collectives']} collectives carry a mask")
    if row.get("rematerializations"):
        reasons.append(f"{row['rematerializations']} involuntary full rematerializations")
    if "bfloat16" in row["program"] and row.get("spill_bytes"):
        reasons.append(f"{row['spill_bytes']} bytes of spills in bfloat16")
    return reasons


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
