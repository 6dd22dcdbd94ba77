"""What dropout really does in anybody's training step."""

from dropout_jax.audit._places import Place
from dropout_jax.audit._record import Noise, OpaqueCall, Record, Site
from dropout_jax.audit._trace import trace

__all__ = ["Noise", "OpaqueCall", "Place", "Record", "Site", "trace"]
