"""Several processes as one run: connect them, synchronize them, and compare their values."""

from __future__ import annotations

import os
import zlib

import jax
import numpy as np
from jax.experimental import multihost_utils

HEARTBEAT_S = 20  # a process that is silent for this long counts as dead, and the others exit


def initialize_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Connect to the other processes; do nothing if no argument and no variable is set.

    The environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID replace
    missing arguments. `coordinator="auto"` asks the cluster (Slurm, Open MPI, Cloud TPU or
    Kubernetes).
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator == "auto":
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_S)
        return
    num_processes = _int_or_env(num_processes, "JAX_NUM_PROCESSES")
    process_id = _int_or_env(process_id, "JAX_PROCESS_ID")
    is_set = [value is not None for value in (coordinator, num_processes, process_id)]
    if not any(is_set):
        return
    if not all(is_set):
        raise ValueError(
            f"coordinator={coordinator!r}, num_processes={num_processes}, process_id={process_id} "
            "are not allowed: set all three, or --coordinator auto on a cluster."
        )
    jax.distributed.initialize(
        coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_S
    )


def _int_or_env(value: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    return int(text) if value is None and text else value


def is_single_process() -> bool:
    """Whether this is the only process."""
    return jax.process_count() == 1


def is_main_process() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has reached the barrier of this name."""
    if not is_single_process():
        multihost_utils.sync_global_devices(name)


def require_equal(value: str, name: str) -> None:
    """Raise ValueError in every process if the value differs between processes."""
    if is_single_process():
        return
    checksum = np.array(zlib.crc32(value.encode()), np.uint32)
    if len(np.unique(multihost_utils.process_allgather(checksum))) > 1:
        raise ValueError(
            f"{name} differ between the processes: they must be the same. Start all processes with "
            "the same command, except for --process-id."
        )


def any_process(flag: bool) -> bool:
    """Whether the flag is true in at least one process; the same result in every process."""
    if is_single_process():
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
