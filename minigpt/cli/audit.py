"""minigpt audit: find what is wrong with the dropout of a run."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Audit:
    """Find what is wrong with the dropout of a run: of its training and its evaluation step.

    For example:

      $ minigpt audit runs/shakespeare-char-cpu --html audit.html

    The exit code is 1 if something is found.
    """

    run_dir: tyro.conf.Positional[Path]
    """directory of a run of `minigpt train` or `minigpt finetune`, or of a classifier, such as
    RUN/classify"""
    json: Path | None = None
    """write every number to this file; - prints them instead of the table"""
    html: Path | None = None
    """write one page with the masks as pictures to this file"""
    rates: bool = False
    """also set each dropout rate to other numbers and compare what is dropped: takes minutes"""
    fail_on: Literal["error", "warning", "never"] = "warning"
    """the exit code is 1 after a finding of this severity or above"""


def run_audit(command: Audit) -> None:
    """Print the table or the JSON, write the files, and exit by what is found."""
    from dropout_jax import audit
    from minigpt.atomic_write import require_writable, write_atomic
    from minigpt.tasks.audit import audit_run

    def warn(message: str) -> None:
        print(f"minigpt: {message}", file=sys.stderr)

    is_printed = command.json == Path("-")
    files = {"html": command.html, "json": None if is_printed else command.json}
    for name, path in files.items():
        if path is not None:
            require_writable(name, path)
    findings = audit_run(command.run_dir, warn, with_rates=command.rates)
    text = json.dumps(audit.to_json(findings), indent=1)
    if files["json"] is not None:
        write_atomic(files["json"], f"{text}\n".encode())
    if files["html"] is not None:
        page = audit.to_html(findings, f"Audit of {command.run_dir}")
        write_atomic(files["html"], page.encode())
    print(text if is_printed else audit.to_text(findings))
    if command.fail_on != "never" and findings.at_least(command.fail_on):
        raise SystemExit(1)
