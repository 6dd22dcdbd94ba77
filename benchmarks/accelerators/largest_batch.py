"""The largest batch of the gpt2 preset that fits one chip."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from checks import LARGEST_BATCH, LIMITS_S
from evidence import cpu_seconds, limit_cpu_seconds
from minigpt.config import PRESETS
from minigpt.training import plan_training
from targets import Chip

STEP = 4  # batches are multiples of this
LIMIT = 512


def largest_batches(chip: Chip) -> Iterator[dict[str, Any]]:
    """One row with the batch, for the chips that people ask about."""
    if chip.name not in ("v5e", "v5p", "h100"):
        return
    start = cpu_seconds()
    low, high = 0, LIMIT // STEP  # low fits, high does not or is not tried
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(chip, STEP * middle) else (low, middle)
    yield {
        "device": chip.name,
        "kind": LARGEST_BATCH,
        "program": f"gpt2, bfloat16, layers in a scan, data=1: batch {STEP * low} fits",
        "batch_size": STEP * low,
        "cpu_s": round(cpu_seconds() - start, 1),
        "command": f"minigpt plan --preset gpt2 --topology {chip.topologies[1]} --batch-size "
        f"{STEP * low} --model.dtype bfloat16 --model.scan-layers True",
    }


def _fits(chip: Chip, batch_size: int) -> bool:
    limit_cpu_seconds(LIMITS_S[LARGEST_BATCH])
    config = PRESETS["gpt2"]
    model = dataclasses.replace(config.model, dtype="bfloat16", scan_layers=True)
    config = dataclasses.replace(config, model=model, mesh="data=1", batch_size=batch_size)
    return plan_training(config, model.vocab_size or 0, chip.topology(1)).fits
