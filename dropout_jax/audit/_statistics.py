"""Intervals of shares, and what a threshold makes of random bits."""

from __future__ import annotations

import math

Z = 4.9  # standard deviations of an interval: one false alarm in a million


def share_interval(count: int, size: int) -> tuple[float, float]:
    """Return the interval of Wilson for a probability, from `count` of `size` elements.

    Formula: (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) with z = 4.9.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if size == 0:
        return 0.0, 1.0
    share, square = count / size, Z * Z / size
    middle = share + square / 2
    width = Z * math.sqrt(share * (1 - share) / size + square / (4 * size))
    low, high = (middle - width) / (1 + square), (middle + width) / (1 + square)
    return max(min(low, share), 0.0), min(max(high, share), 1.0)


def chance_of_constant(share: float, along: int, others: int) -> float:
    """Return the probability that independent decisions are constant along an axis by chance."""
    return (share**along + (1 - share) ** along) ** others


def probability_of_true(
    threshold: float, primitive: str, bits: int, *, is_first: bool, is_float: bool
) -> float | None:
    """Return P(u < t), exactly, for a u of so many random bits; None if it cannot be known.

    A floating u is k / 2^bits in [0, 1) and an integer k; k is uniform. The number of k below t
    decides: with the 7 bits of bfloat16, u < 0.9 is true with probability 116 / 128 = 0.906.
    """
    if primitive not in ("lt", "le", "gt", "ge") or bits > 52:
        return None
    scaled = threshold * 2.0**bits if is_float else threshold
    below = primitive in ("lt", "le") if is_first else primitive in ("gt", "ge")
    counts_equal = (primitive in ("le", "gt")) if is_first else (primitive in ("ge", "lt"))
    smaller = math.floor(scaled) + 1 if counts_equal else math.ceil(scaled)
    share = min(max(smaller / 2.0**bits, 0.0), 1.0)
    return share if below else 1 - share
