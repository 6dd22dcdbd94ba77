"""Many processes as one run: how they meet, and what only the first of them does."""

from __future__ import annotations

import os
import zlib

import jax
import numpy as np
from jax.experimental import multihost_utils

HEARTBEAT_S = 20  # a process that is silent for this long is taken for dead, and the others end


def initialize_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Join the other processes, by flags or by $JAX_COORDINATOR_ADDRESS and its like.

    `coordinator="auto"` takes all from the cluster: Slurm, Open MPI, Cloud TPU, Kubernetes.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator == "auto":
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_S)
        return
    num_processes = _number(num_processes, "JAX_NUM_PROCESSES")
    process_id = _number(process_id, "JAX_PROCESS_ID")
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if not any(given):
        return
    if not all(given):
        raise ValueError(
            f"coordinator={coordinator!r}, num_processes={num_processes}, process_id={process_id} "
            "are not allowed: all three must be given, or --coordinator auto on a cluster."
        )
    jax.distributed.initialize(
        coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_S
    )


def _number(flag: int | None, variable: str) -> int | None:
    value = os.environ.get(variable)
    return int(value) if flag is None and value else flag


def is_single_process() -> bool:
    """Whether this is the only process."""
    return jax.process_count() == 1


def is_main_process() -> bool:
    """Whether this process writes and prints for all."""
    return jax.process_index() == 0


def barrier(what: str) -> None:
    """Go on when every process is here."""
    if not is_single_process():
        multihost_utils.sync_global_devices(what)


def require_equal(value: str, what: str) -> None:
    """Every process has the same value, or all of them end with an error."""
    if is_single_process():
        return
    number = np.array(zlib.crc32(value.encode()), np.uint32)
    if len(np.unique(multihost_utils.process_allgather(number))) > 1:
        raise ValueError(
            f"{what} differ between the processes: they must be the same. Give all of them the "
            "same command, but for --process-id."
        )


def any_process(said: bool) -> bool:
    """Whether some process says so; all get the same answer."""
    return (
        said
        if is_single_process()
        else bool(np.any(multihost_utils.process_allgather(np.array(said))))
    )
