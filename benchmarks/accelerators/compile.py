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
    from checks import COMPILING
    from evidence import PtxDump, measure

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chips", nargs="+")
    parser.add_argument("--only", default="", help="programs whose kind and name start so")
    parser.add_argument("--full", action="store_true", help="the large programs too")
    settings = parser.parse_args()
    dump = PtxDump() if "h100" in settings.chips else None
    from largest_batch import largest_batches
    from programs import programs
    from targets import CHIPS

    for name in settings.chips:
        chip = CHIPS[name]
        for program in programs(chip, full=settings.full):
            label = f"{program.kind} {program.name}"
            if not label.startswith(settings.only):
                continue
            row = {"device": name, "kind": program.kind, "program": program.name}
            print(f"{COMPILING}{name} {label}", file=sys.stderr, flush=True)
            row |= measure(program.lower)
            if dump and program.kind in ("op", "attention"):
                row |= dump.assemble()
            row |= {"bound_mib": round(program.bound_mib, 1), "group": program.same_collectives}
            command = (
                f'{chip.venv}/bin/python benchmarks/accelerators/compile.py {name} --only "{label}"'
            )
            row["command"] = command + (" --full" if settings.full else "")
            print(json.dumps(row), flush=True)
        if settings.full and not settings.only:
            for row in largest_batches(chip):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
