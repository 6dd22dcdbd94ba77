"""Compile what --full adds, one process each, and save each row at once: it takes hours.

A row that is there already is kept, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from checks import LARGEST_BATCH, Row, count_rematerializations, explain_end, last_program

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LARGE = RESULTS / "accelerators-large.json"


def read_large() -> list[Row]:
    """The rows so far; each has the commit at which it was compiled."""
    return json.loads(LARGE.read_text())["rows"] if LARGE.exists() else []


def compile_large(venvs: dict[str, tuple[str, ...]], only: str, short: list[Row]) -> None:
    """Compile what --full adds to the short form, where its name starts with `only`."""
    jobs = [job for venv, chips in venvs.items() for job in _list_jobs(venv, chips, only)]
    known = {_name(row) for row in (*short, *read_large())}
    jobs = [(command, program) for command, program in jobs if _name(program) not in known]
    for i, (command, program) in enumerate(jobs, 1):
        print(f"{i}/{len(jobs)}", *_name(program), flush=True)
        _save(_compile(command, program))


def _list_jobs(venv: str, chips: tuple[str, ...], only: str) -> Iterator[tuple[list[str], Row]]:
    """The command of each program and what names it."""
    for chip in chips:
        command = [str(ROOT / venv / "bin" / "python"), str(Path(__file__).with_name("compile.py"))]
        command += [chip, "--full", "--only"]
        listed = subprocess.run([*command, only, "--list"], capture_output=True, check=True)
        for i, line in enumerate(listed.stdout.splitlines()):
            yield [*command, only, "--first", str(i), "--count", "1"], json.loads(line)
        if LARGEST_BATCH.startswith(only) and chip in ("v5e", "v5p", "h100"):
            program = {"device": chip, "kind": LARGEST_BATCH, "program": "", "command": ""}
            yield [*command, LARGEST_BATCH], program


def _name(row: Row) -> tuple[str, ...]:
    program = "" if row["kind"] == LARGEST_BATCH else row["program"]
    return row["device"], row["kind"], program


def _compile(command: list[str], program: Row) -> Row:
    result = subprocess.run(command, capture_output=True, errors="replace", check=False)
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if not lines and last_program(result.stderr) is None:
        sys.exit(f"{' '.join(command)}\n{result.stderr}")
    if not lines:
        return program | {"error": explain_end(result.returncode, program["kind"]), "cpu_s": 0.0}
    row = json.loads(lines[-1])
    warnings = count_rematerializations(result.stderr).get(row["command"], 0)
    return row | {"rematerializations": warnings}


def _save(row: Row) -> None:
    head = ["git", "-C", str(ROOT), "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    rows = [*read_large(), row | {"commit": commit}]
    LARGE.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
