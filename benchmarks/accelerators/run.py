"""Compile all programs in the environments of `make accelerators`, check them, write the page.

Exits with 1 and says which if a check fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from checks import Row, count_rematerializations, explain_end, failures, last_program
from large import compile_large, read_large
from report import render

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SHORT = RESULTS / "accelerators.json"
CHIPS = {".venv-tpu": ("v4", "v5e", "v5p", "v6e"), ".venv-cuda": ("h100",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="every program, for hours")
    parser.add_argument("--only", default="", help="programs that start so")
    settings = parser.parse_args()
    if settings.full:
        rows = json.loads(SHORT.read_text())["rows"]
        compile_large(CHIPS, settings.only, rows)
    else:
        options = ["--only", settings.only]
        rows = [row for venv, chips in CHIPS.items() for row in compile_in(venv, chips, options)]
    large = read_large()
    reasons = failures(rows) + failures(large)
    if settings.full or not settings.only:
        write_page(rows, large, reasons)
    print(f"{len(rows)} programs, {sum(row['cpu_s'] for row in rows):.0f} s of CPU")
    for reason in reasons:
        print(f"FAILED {reason}")
    sys.exit(bool(reasons))


def write_page(rows: list[Row], large: list[Row], reasons: list[str]) -> None:
    """Write the page and the JSON of the short form."""
    pins = [
        line
        for line in Path(__file__).with_name("pins.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    content = {"versions": pins, "failures": reasons, "rows": rows}
    SHORT.write_text(json.dumps(content, indent=1) + "\n")
    (ROOT / "docs" / "accelerators.md").write_text(render(rows, large, RESULTS))


def compile_in(venv: str, chips: tuple[str, ...], options: list[str]) -> list[Row]:
    """The rows of some chips.

    A compiler that crashes, or does not finish, ends its process: the program fails, and another
    process goes on with the next one. Logs are shown only if a process ends without a program.
    """
    command = [ROOT / venv / "bin" / "python", Path(__file__).with_name("compile.py"), *chips]
    command += options
    rows: list[Row] = []
    while True:
        first = ["--first", str(len(rows))]
        result = subprocess.run(
            [*command, *first], capture_output=True, errors="replace", check=False
        )
        rows += read_rows(result.stdout, result.stderr)
        if not result.returncode:
            return rows
        program = last_program(result.stderr)
        if program is None or program["command"] in {row["command"] for row in rows}:
            sys.exit(f"{' '.join(map(str, command))}\n{result.stderr}")
        error = explain_end(result.returncode, program["kind"])
        rows.append(program | {"error": error, "cpu_s": 0.0})


def read_rows(stdout: str, stderr: str) -> list[Row]:
    """The rows that a process printed, with what the compiler's log says of each."""
    warnings = count_rematerializations(stderr)
    rows = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    return [row | {"rematerializations": warnings.get(row["command"], 0)} for row in rows]


if __name__ == "__main__":
    main()
