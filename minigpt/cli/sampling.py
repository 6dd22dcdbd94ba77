"""The options of sampling that several commands have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is drawn."""

    temperature: float = 1.0
    """divisor of the logits; 0 takes the likeliest token"""
    top_k: int | None = None
    """sample only from the k likeliest tokens"""
    top_p: float | None = None
    """sample only from the fewest tokens whose probabilities sum to at least this"""
    window: Literal["slide", "half"] = "slide"
    """past block_size tokens, slide: read the last block_size for each new token; half: drop the
    older half whenever the block is full, which is many times faster"""
