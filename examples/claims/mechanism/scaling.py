"""Survivors are scaled, and the sum is kept.

Exact values at 11 rates, and the mean sum of 4,096 positive numbers over 1,000 masks for each of
ten seeds at four rates. The seed decides the numbers and the masks.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim
from common.claim import Finding, Interval, Result, describe, interval, verdict_by
from dropout_jax import dropout, dropout_unscaled, fold, keep_mask

RATES = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
SUM_RATES = (0.1, 0.2, 0.5, 0.8)
PRECISION = 1e-6  # a few roundings to float32, relative
NEAR = 0.002  # of the sum: a smaller difference counts as kept
SRIVASTAVA = "Srivastava et al., Dropout, JMLR 2014"


def experiment(scale: claim.Scale) -> Result:
    seeds, draws = scale.pick((3, 100), (10, 1000), (20, 10_000))
    ones = scale_factors(dropout)
    hand = are_equal(by_hand, seeds, dropout)
    book = are_equal(textbook, seeds, dropout, PRECISION)
    kept, lost = (mean_sums(seeds, draws, drop) for drop in (dropout, dropout_unscaled))
    numbers = {"1 becomes": ones, "sum scaled": kept, "sum not scaled": lost}
    return Result(findings(ones, hand, book, kept, lost), picture(ones, kept, lost), numbers)


def scale_factors(drop) -> dict[float, float]:
    """The factor of survivors, by rate."""
    return {rate: float(drop(jnp.ones(999), rate, key=jax.random.key(0)).max()) for rate in RATES}


def by_hand(x, rate, key):
    """Dropout in five lines, with the scale in float32."""
    keep = keep_mask(key, rate, x.shape)
    share = np.float32(1) - np.float32(rate)
    return jnp.where(keep, x * (1 / share), 0)


def textbook(x, rate, key):
    """The last line of d2l.ai's dropout_layer, with the same mask."""
    return keep_mask(key, rate, x.shape) * x / (1.0 - rate)


def are_equal(line, keys: int, drop, precision: float = 0) -> dict[float, bool]:
    """Whether the line and the function agree for every key, by rate."""

    def agree(rate, key):
        x = jax.random.normal(fold(key, "x"), (64, 100))
        return np.allclose(line(x, rate, key=key), drop(x, rate, key=key), precision, atol=0)

    every = list(map(jax.random.key, range(keys)))
    return {rate: all(agree(rate, key) for key in every) for rate in RATES}


def mean_sums(seeds: int, draws: int, drop) -> dict[float, Interval]:
    """The mean over masks of the sum after dropout, as a share of the sum before, by rate."""

    def share_left(seed, rate):
        key = jax.random.key(seed)
        x = jnp.abs(jax.random.normal(fold(key, "x"), (4096,)))
        draw_indices = jnp.arange(draws, dtype=jnp.uint32)
        return (
            jax.lax.map(lambda i: drop(x, rate, key=fold(key, i)).sum(), draw_indices).mean()
            / x.sum()
        )

    of_seeds = jax.jit(jax.vmap(share_left, (0, None)))
    return {rate: interval(of_seeds(jnp.arange(seeds), rate)) for rate in SUM_RATES}


def findings(ones, hand, book, kept, lost) -> list[Finding]:
    exact = {rate: abs(one * (1 - rate) - 1) <= PRECISION for rate, one in ones.items()}
    off = [abs(one * (1 - rate) - 1) for rate, one in ones.items()]

    def near(share, value):
        return value - NEAR < share.low and share.high < value + NEAR

    return [
        Finding(
            "Survivors are scaled to 1 / (1 - rate): at rate 0.2, 1 becomes 1.25",
            f"{SRIVASTAVA}, section 10; d2l.ai, Dropout",
            f"at rate 0.2, 1 becomes {ones[0.2]:.9g}; over {len(RATES)} rates, which are rounded "
            f"to float32, it differs from 1 / (1 - rate) by at most a share of {max(off):.1e}",
            verdict_by("the rate is", exact),
        ),
        Finding(
            "A mask applied by hand in five lines equals the function, bit for bit",
            "d2l.ai, Dropout",
            f"all bits equal at {sum(hand.values())} of {len(RATES)} rates with the scale in "
            f"float32; d2l.ai's x / (1 - rate) is equal to {PRECISION:g} at {sum(book.values())}",
            verdict_by("the rate is", hand),
        ),
        Finding(
            "The scale keeps the sum on average; without it the sum falls by the rate",
            f"{SRIVASTAVA}; d2l.ai, Dropout",
            f"share of the sum left (the claim: within {NEAR} of 1 and of 1 - rate), with the "
            f"scale: {describe(kept, '.4f')}; without it: {describe(lost, '.4f')}",
            verdict_by("the rate is", {r: near(kept[r], 1) and near(lost[r], 1 - r) for r in kept}),
        ),
    ]


def picture(ones, kept, lost):
    figure, (left, right) = charts.panels(5.5, 5.5, height=4)
    left.bar([str(rate) for rate in ones], [(one * (1 - r) - 1) * 1e6 for r, one in ones.items()])
    left.axhline(0, color="0.3", lw=0.8)
    left.set(title="what 1 becomes, against 1 / (1 - rate)", ylabel="relative difference, 1e-6")
    right.plot([0, 1], [1, 1], "C0:", [0, 1], [1, 0], "C1:", lw=1)  # the expected shares
    series = {"scaled": kept.values(), "not scaled": lost.values()}
    charts.lines(right, SUM_RATES, series, "o", title="sum of 4,096 numbers, share of that before")
    figure.supxlabel("rate")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
