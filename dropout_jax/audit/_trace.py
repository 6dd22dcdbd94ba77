"""`trace`: the record of the random decisions of one run of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dropout_jax.audit._build import build_record
from dropout_jax.audit._program import Program
from dropout_jax.audit._record import Record


def trace(step: Callable[..., Any], *args: Any, masks: bool = False, **kwargs: Any) -> Record:
    """Run a step once and return a record of every random decision in it.

    The step is traced to a jaxpr. What its masks need of it is compiled and run, and the rest is
    not: a training step costs its masks. The code of the step is not changed, and its results are
    not computed.

    Args:
      step: any function of arrays, jitted or not: a training step, a loss, a model. Of any
        framework.
      *args: its arguments: pytrees of arrays. Python numbers count as arrays where the step allows
        it; strings, booleans and functions stay what they are.
      masks: True keeps the masks, in `Site.masks`; else only their numbers are kept.
      **kwargs: its arguments by name.

    Returns:
      The sites where booleans are made of random numbers and meet data, and what else is random.

    Raises:
      Whatever the step raises for such arguments.

    Limits: of a while loop, 64 turns are recorded. Kernels, callbacks and foreign calls are opaque.
    A mask that meets data in another way than a select, a product or a sum is not seen.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from dropout_jax import audit, dropout
      >>> def step(x, key):
      ...     return dropout(x, 0.25, key=key).sum()
      >>> (site,) = audit.trace(step, jnp.ones((64, 64)), jax.random.key(0)).sites
      >>> site.shape, site.times, site.key_arguments, site.shared_axes
      ((64, 64), 1, ('key',), ())
      >>> round(site.kept, 1), round(site.scale, 3)
      (0.8, 1.333)
    """
    program = Program(step, args, kwargs, keeps_masks=masks)
    return build_record(program.graph, program.run(), program.arguments.names)
