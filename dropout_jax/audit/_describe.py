"""What the text, the JSON and the page show of an audit: records, and the findings of a site."""

from __future__ import annotations

import os
from collections.abc import Iterable

from dropout_jax.audit._findings import SEVERITIES, Finding, Findings
from dropout_jax.audit._locations import Location
from dropout_jax.audit._record import Record, Site

IN_EVALUATION = ("D03", "D13")  # the codes of findings about the evaluation


def list_records(findings: Iterable[Finding]) -> dict[str, Record]:
    """Return the records of findings, by the name of the run: "training" and "evaluation"."""
    if not isinstance(findings, Findings):
        return {}
    records = {"training": findings.training, "evaluation": findings.evaluation}
    return {run: record for run, record in records.items() if record is not None}


def findings_of(site: Site, run: str, findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that are about a site of a run."""
    return [
        finding
        for finding in findings
        if finding.location == site.location
        and finding.callers in ((), site.callers)
        and (finding.code in IN_EVALUATION) == (run == "evaluation")
    ]


def count_findings(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings there are of each severity."""
    severities = [finding.severity for finding in findings]
    return {severity: severities.count(severity) for severity in SEVERITIES}


def describe_counts(findings: Iterable[Finding]) -> str:
    """Return such as "1 error, 2 notes", or "no findings"."""
    counts = count_findings(findings).items()
    parts = [f"{count} {name}{'s' * (count != 1)}" for name, count in counts if count]
    return ", ".join(parts) or "no findings"


def describe_interval(site: Site) -> str:
    """Return the share that is kept with its interval, such as "0.7512 [0.7301, 0.7711]"."""
    low, high = site.interval
    return f"{site.kept:.4f} [{low:.4f}, {high:.4f}]"


def short_location(location: Location) -> str:
    """Return a location with its path from the working directory, if it is below that."""
    folder = os.getcwd() + os.sep
    return str(location._replace(file=location.file.removeprefix(folder)))


def describe_callers(what: Site | Finding) -> list[str]:
    """Return the lines that lead to the location of a site or a finding, the innermost first."""
    return [short_location(caller) for caller in what.callers if caller != what.location]
