"""Compile the programs of some chips and print one JSON row each: the device, and what it tells.

JAX_PLATFORMS=cpu .venv-tpu/bin/python benchmarks/accelerators/compile.py v5e --only "op dropout"
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["JAX_PLATFORMS"] = "cpu"  # no device is opened
# Warnings of the compilers are written to standard error, where run.py looks for them.
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "0", "TPU_MIN_LOG_LEVEL": "0", "TPU_STDERR_LOG_LEVEL": "0"}


def main() -> None:
    from checks import COMPILING, LARGEST_BATCH, LIMITS_S
    from evidence import PtxDump, measure

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chips", nargs="+")
    parser.add_argument("--only", default="", help="programs whose kind and name start so")
    parser.add_argument("--full", action="store_true", help="every program")
    parser.add_argument("--first", type=int, default=0, help="how many programs to pass over")
    parser.add_argument("--count", type=int, help="how many programs to compile then")
    parser.add_argument("--list", action="store_true", help="print the programs, compile nothing")
    settings = parser.parse_args()
    dump = PtxDump() if "h100" in settings.chips else None
    from largest_batch import largest_batches
    from programs import programs
    from targets import CHIPS

    chosen = [
        (CHIPS[name], program)
        for name in settings.chips
        for program in programs(CHIPS[name], full=settings.full)
        if f"{program.kind} {program.name}".startswith(settings.only)
    ]
    end = None if settings.count is None else settings.first + settings.count
    for chip, program in chosen[settings.first : end]:
        known = {"device": chip.name, "kind": program.kind, "program": program.name}
        known["command"] = program.command(chip, full=settings.full)
        if settings.list:
            print(json.dumps(known))
            continue
        print(COMPILING + json.dumps(known), file=sys.stderr, flush=True)
        row = known | measure(program.lower, LIMITS_S[program.kind], program.elements)
        if dump and program.kind in ("op", "dropout", "attention"):
            row |= dump.assemble()
        row |= {
            "bound_mib": round(program.bound_mib, 1),
            "group": program.same_collectives,
            "expected_kernels": program.attention_kernels,
            "has_collectives": program.has_collectives,
            "rival": program.rival,
            "whole_arrays": program.whole_arrays,
        }
        print(json.dumps(row), flush=True)
    if settings.full and settings.only == LARGEST_BATCH and not settings.list:
        for name in settings.chips:
            known = {"device": name, "kind": LARGEST_BATCH, "program": "", "command": ""}
            print(COMPILING + json.dumps(known), file=sys.stderr, flush=True)
            for row in largest_batches(CHIPS[name]):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
