"""What dropout really does in anybody's training step."""

from dropout_jax.audit._check import assert_no_findings, check
from dropout_jax.audit._findings import Finding
from dropout_jax.audit._locations import Location
from dropout_jax.audit._record import Noise, OpaqueCall, Record, Site
from dropout_jax.audit._trace import trace

__all__ = [
    "Finding",
    "Location",
    "Noise",
    "OpaqueCall",
    "Record",
    "Site",
    "assert_no_findings",
    "check",
    "trace",
]
