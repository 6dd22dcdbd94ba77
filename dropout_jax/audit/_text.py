"""`to_text`: the sites and the findings of an audit as a table and paragraphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dropout_jax.audit._describe import (
    describe_callers,
    describe_counts,
    describe_interval,
    findings_of,
    list_records,
    short_location,
)
from dropout_jax.audit._findings import Finding
from dropout_jax.audit._record import Record, Site

COLUMNS = (
    "where",
    "called from",
    "module",
    "mask",
    "times",
    "kept",
    "scale",
    "shared axes",
    "findings",
)


def to_text(findings: Sequence[Finding]) -> str:
    """Return a table of the sites of each record, the findings, and their number.

    Args:
      findings: of `check`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import audit, dropout
      >>> def step(x, key):
      ...     return dropout(x, 0.1, key=key).sum()
      >>> findings = audit.check(step, args_at=lambda n: (jnp.ones((8, 32)), jax.random.key(n)))
      >>> audit.to_text(findings).splitlines()[-1]
      'no findings'
    """
    parts = [_record_text(run, record, findings) for run, record in list_records(findings).items()]
    parts += [_finding_text(finding) for finding in findings]
    return "\n\n".join([*parts, describe_counts(findings)])


def _record_text(run: str, record: Record, findings: Sequence[Finding]) -> str:
    """Return the table of a run, and what else is random in it."""
    rows = [_row(site, run, findings) for site in record.sites]
    lines = list(_align([COLUMNS, *rows])) if rows else ["no dropout site"]
    others = (*record.strays, *record.noise, *record.opaque)
    return "\n".join([f"{run}:", *lines, *map(str, others)])


def _row(site: Site, run: str, findings: Sequence[Finding]) -> tuple[str, ...]:
    return (
        short_location(site.location),
        next(iter(describe_callers(site)), "-"),
        site.module or "-",
        " x ".join(map(str, site.shape)) or "1",
        str(site.times),
        describe_interval(site),
        "-" if site.scale is None else f"{site.scale:.4f}",
        ", ".join(map(str, site.shared_axes)) or "-",
        " ".join(dict.fromkeys(one.code for one in findings_of(site, run, findings))) or "-",
    )


def _align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Iterate over the lines of a table: columns start below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def _finding_text(finding: Finding) -> str:
    callers = describe_callers(finding)
    lines = [
        f"{finding.code} {finding.severity}: {short_location(finding.location)}: {finding.title}",
        finding.message,
        finding.remedy,
        f"Called from {', '.join(callers)}." if callers else "",
    ]
    return "\n    ".join(line for line in lines if line)
