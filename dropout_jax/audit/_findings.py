"""What `check` returns: findings, each with a code, a severity, a location and a remedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

from dropout_jax.audit._locations import Location
from dropout_jax.audit._record import Record

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

TITLES = {
    "D01": "dead rate",
    "D02": "off in training",
    "D03": "on in evaluation",
    "D04": "same mask at every step",
    "D05": "same mask in two layers or sites",
    "D06": "shared across an axis",
    "D07": "recomputed with another mask",
    "D08": "devices agree where they should differ, or differ where they should agree",
    "D09": "rate not what was asked",
    "D10": "scale wrong or missing",
    "D11": "biased in low precision",
    "D12": "dropout of padding or of masked losses",
    "D13": "random in evaluation",
    "D14": "masks of an earlier step again",
    "D15": "key built from a number in the program",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault, or a note.

    Args:
      code: D01 to D15.
      severity: "error", "warning" or "note".
      location: the line of the user's code.
      message: what is so, with its numbers.
      remedy: what to do.
      callers: the lines of the user's code that lead to the location.
    """

    code: str
    severity: Severity
    location: Location
    message: str
    remedy: str
    callers: tuple[Location, ...] = ()

    @property
    def title(self) -> str:
        """The name of the fault."""
        return TITLES[self.code]

    def __str__(self) -> str:
        """Return a line of text."""
        head = f"{self.code} {self.severity}: {self.location}: {self.title}"
        callers = ", ".join(str(location) for location in self.callers if location != self.location)
        return f"{head}. {self.message} {self.remedy}" + (
            f" Called from {callers}." if callers else ""
        )


class Findings(tuple[Finding, ...]):
    """The findings of `check`, errors first, and the records that they are findings about.

    Args:
      findings: in this order.
      training: the record of the first training step, or None.
      evaluation: the record of the evaluation step, or None.
    """

    training: Record | None
    evaluation: Record | None

    def __new__(
        cls,
        findings: Iterable[Finding] = (),
        *,
        training: Record | None = None,
        evaluation: Record | None = None,
    ) -> Findings:
        """Return a tuple of findings with two attributes."""
        self = super().__new__(cls, findings)
        self.training, self.evaluation = training, evaluation
        return self

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of this severity, and of those above it."""
        limit = SEVERITIES.index(severity)
        return tuple(one for one in self if SEVERITIES.index(one.severity) <= limit)


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings by severity and code, one of each code, severity and location."""
    unique: dict[tuple, Finding] = {}
    for finding in findings:
        where = finding.location, finding.callers
        unique.setdefault((finding.code, finding.severity, where), finding)
    return tuple(
        sorted(
            unique.values(),
            key=lambda finding: (
                SEVERITIES.index(finding.severity),
                finding.code,
                finding.location,
            ),
        )
    )
