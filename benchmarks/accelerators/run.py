"""Compile all programs in the environments of `make accelerators`, check them, write the page.

Exits with 1 and says which if a check fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from checks import count_rematerializations, failures
from report import render

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CHIPS = {".venv-tpu": ("v4", "v5e", "v5p", "v6e"), ".venv-cuda": ("h100",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the large programs too")
    full = parser.parse_args().full
    rows = [row for venv, chips in CHIPS.items() for row in compile_in(venv, chips, full=full)]
    reasons = failures(rows)
    pins = [
        line
        for line in Path(__file__).with_name("pins.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    content = {"full": full, "versions": pins, "failures": reasons, "rows": rows}
    (RESULTS / "accelerators.json").write_text(json.dumps(content, indent=1) + "\n")
    (ROOT / "docs" / "accelerators.md").write_text(render(rows, RESULTS))
    print(f"{len(rows)} programs, {sum(row['cpu_s'] for row in rows):.0f} s of CPU")
    for reason in reasons:
        print(f"FAILED {reason}")
    sys.exit(bool(reasons))


def compile_in(venv: str, chips: tuple[str, ...], *, full: bool) -> list[dict]:
    """The rows of some chips; the compilers' logs are shown only if the process fails."""
    command = [ROOT / venv / "bin" / "python", Path(__file__).with_name("compile.py"), *chips]
    command += ["--full"] if full else []
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr}")
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    warnings = count_rematerializations(result.stderr)
    labels = [f"{row['device']} {row['kind']} {row['program']}" for row in rows]
    return [
        row | {"rematerializations": warnings.get(label, 0)}
        for row, label in zip(rows, labels, strict=True)
    ]


if __name__ == "__main__":
    main()
