"""Checkpoints: written in the background, committed by a rename, verified before use."""

from minigpt.checkpoint.manager import (
    CheckpointWriter,
    arrays_sha256,
    best_step,
    host_arrays,
    list_steps,
    read,
    restore,
    restore_latest_valid,
)
from minigpt.checkpoint.manifest import CheckpointError
