"""What dropout really does in anybody's training step."""

from dropout_jax.audit._check import assert_no_findings, check
from dropout_jax.audit._findings import Finding, Findings
from dropout_jax.audit._html import to_html
from dropout_jax.audit._json import to_json
from dropout_jax.audit._locations import Location
from dropout_jax.audit._record import Noise, OpaqueCall, Record, Site
from dropout_jax.audit._text import to_text
from dropout_jax.audit._torch import torch, trace_torch
from dropout_jax.audit._trace import trace

__all__ = [
    "Finding",
    "Findings",
    "Location",
    "Noise",
    "OpaqueCall",
    "Record",
    "Site",
    "assert_no_findings",
    "check",
    "to_html",
    "to_json",
    "to_text",
    "torch",
    "trace",
    "trace_torch",
]
