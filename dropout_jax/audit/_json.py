"""`to_json`: the findings and the records of an audit as JSON's types, with every number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dropout_jax.audit._describe import count_findings, findings_of, list_records
from dropout_jax.audit._findings import Finding
from dropout_jax.audit._locations import Location
from dropout_jax.audit._record import Record, Site

PICTURES = ("masks", "corner")


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings, their number by severity, and the records, for `json.dumps`.

    A site has all that `Site` has but its pictures, and the codes of its findings. A number that is
    not finite is None.

    Args:
      findings: of `check`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import audit, dropout
      >>> def step(x, key):
      ...     return dropout(x, 0.25, key=key).sum()
      >>> findings = audit.check(step, args_at=lambda n: (jnp.ones((64, 64)), jax.random.key(n)))
      >>> result = audit.to_json(findings)
      >>> result["counts"]
      {'error': 0, 'warning': 0, 'note': 0}
      >>> [(site["shape"], site["findings"]) for site in result["training"]["sites"]]
      [([64, 64], [])]
    """
    records = {
        run: _record_json(run, record, findings) for run, record in list_records(findings).items()
    }
    return {
        "counts": count_findings(findings),
        "findings": [_finding_json(finding) for finding in findings],
        "training": records.get("training"),
        "evaluation": records.get("evaluation"),
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {"code": finding.code, "title": finding.title} | _convert(finding)


def _record_json(run: str, record: Record, findings: Sequence[Finding]) -> dict[str, Any]:
    sites = [
        _site_json(site) | {"findings": [one.code for one in findings_of(site, run, findings)]}
        for site in record.sites
    ]
    return {
        "sites": sites,
        "strays": [_site_json(site) for site in record.strays],
        "noise": _convert(record.noise),
        "opaque": _convert(record.opaque),
    }


def _site_json(site: Site) -> dict[str, Any]:
    without = dict.fromkeys(PICTURES)
    fields = _convert(dataclasses.replace(site, **without))
    own = {name: value for name, value in fields.items() if name not in PICTURES}
    return own | {
        "scale": _convert(site.scale),
        "is_active": site.is_active,
        "is_key_constant": site.is_key_constant,
    }


def _convert(value: Any) -> Any:
    """Return a value in JSON's types; of what is none of them, its text."""
    if isinstance(value, Location):
        return _convert(value._asdict())
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: _convert(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {str(name): _convert(item) for name, item in value.items()}
    if isinstance(value, frozenset):
        return [_convert(item) for item in sorted(value)]
    if isinstance(value, list | tuple):
        return [_convert(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _convert(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
