"""Survivors are scaled, and the sum is kept.

Exact facts over 11 rates, and the sum of 4,096 positive numbers over many masks at four. The seed
decides the numbers and the masks.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from common import claim
from common.claim import Finding, interval
from dropout_jax import dropout, dropout_unscaled, fold, keep_mask

RATES = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
SUM_RATES = (0.1, 0.2, 0.5, 0.8)
NEAR = 0.002  # of the sum: what counts as kept
SRIVASTAVA = "Srivastava et al., Dropout, JMLR 2014"


def by_hand(x, rate, key):
    """The five lines, with the scale that the mask really has."""
    keep = keep_mask(key, rate, x.shape)
    share = np.rint((1 - np.float32(rate)) * 2**16) / 2**16
    return jnp.where(keep, x * (1 / share), 0)


def textbook(x, rate, key):
    """The last line of d2l.ai's dropout_layer, with the same mask."""
    return keep_mask(key, rate, x.shape) * x / (1.0 - rate)


def difference(function, hand, rate, keys):
    """Whether both give the same bits for every key, and how far apart what is kept is at most."""
    same, most = True, 0.0
    for key in map(jax.random.key, range(keys)):
        x = jax.random.normal(fold(key, "x"), (64, 100))
        ours, theirs = np.asarray(function(x, rate, key=key)), np.asarray(hand(x, rate, key))
        same &= ours.tobytes() == theirs.tobytes()
        most = max(most, (np.abs(theirs - ours) / np.where(ours == 0, 1, np.abs(ours))).max())
    return same, most


def mean_sum(seed, rate, draws, drop):
    """The mean over masks of the sum after dropout, as a share of the sum before."""
    key = jax.random.key(seed)
    x = jnp.abs(jax.random.normal(fold(key, "x"), (4096,)))
    places = jnp.arange(draws, dtype=jnp.uint32)
    after = jax.lax.map(lambda i: drop(x, rate, key=fold(key, i)).sum(), places)
    return after.mean() / x.sum()


def left(seeds, draws, drop):
    """The share of the sum that is left: an interval by rate."""
    over = jax.jit(jax.vmap(lambda seed, rate: mean_sum(seed, rate, draws, drop), (0, None)))
    return {rate: interval(over(jnp.arange(seeds), rate)) for rate in SUM_RATES}


def factor_finding(drop=dropout):
    """What 1 becomes."""
    became = {rate: float(drop(jnp.ones(999), rate, key=jax.random.key(0)).max()) for rate in RATES}
    exact = {rate: np.float32(one) == np.float32(1 / (1 - rate)) for rate, one in became.items()}
    off = {rate: abs(one * (1 - rate) - 1) for rate, one in became.items()}
    return became, Finding(
        "Survivors are scaled to exactly 1 / (1 - rate): at rate 0.2, 1 becomes 1.25",
        f"{SRIVASTAVA}, section 10; d2l.ai, Dropout",
        f"at rate 0.2, 1 becomes {became[0.2]:.9g} (65536/52429 in float32), {off[0.2]:.1e} of "
        "itself away: the scale is the inverse of the probability that the mask really has, a "
        f"multiple of 2^-16; over {len(RATES)} rates at most {max(off.values()):.1e} away",
        claim.verdict_by("the rate is", exact),
    )


def hand_finding(keys, drop=dropout):
    """The five lines."""
    hand = {rate: difference(drop, by_hand, rate, keys) for rate in RATES}
    book = {rate: difference(drop, textbook, rate, keys) for rate in RATES}
    equal = [sum(same for same, _ in found.values()) for found in (hand, book)]
    return Finding(
        "A mask made by hand in five lines is the function, bit for bit",
        "d2l.ai, Dropout",
        f"{len(RATES)} rates, {keys} keys, 6,400 elements: all bits equal at {equal[0]} rates with "
        f"the scale that the mask really has; with d2l.ai's x / (1 - rate) on the same mask at "
        f"{equal[1]}, and at most {max(most for _, most in book.values()):.1e} of the value apart",
        claim.verdict_by("the rate is", {rate: same for rate, (same, _) in hand.items()}),
    )


def sum_finding(kept, lost):
    """With the scale and without."""

    def near(found, value):
        return value - NEAR < found.low and found.high < value + NEAR

    holds = {rate: near(kept[rate], 1) and near(lost[rate], 1 - rate) for rate in kept}
    each = [f"rate {rate}: {kept[rate]:.4f} and {lost[rate]:.4f}" for rate in kept]
    return Finding(
        "The scale keeps the sum on average; without it the sum falls by the rate",
        f"{SRIVASTAVA}; d2l.ai, Dropout",
        f"share of the sum left, with and without the scale: {'; '.join(each)} (the claim: the "
        f"intervals are within {NEAR} of 1 and of 1 - rate)",
        claim.verdict_by("the rate is", holds),
    )


def draw(became, kept, lost):
    """The factor's distance, and the sums."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    off = [(one * (1 - rate) - 1) * 1e6 for rate, one in became.items()]
    left.bar(range(len(off)), off, color="C0")
    left.set_xticks(range(len(off)), list(map(str, became)))
    left.axhline(0, color="0.3", lw=0.8)
    left.set(title="what 1 becomes, against 1 / (1 - rate)", xlabel="rate")
    left.set_ylabel("relative difference, millionths")
    for found, colour, label in ((kept, "C0", "scaled"), (lost, "C3", "not scaled")):
        right.plot(list(found), [each.mean for each in found.values()], "o", c=colour, label=label)
    ends = np.array([0, 1])
    right.plot(ends, ends * 0 + 1, "C0:", ends, 1 - ends, "C3:", lw=1)
    right.set(title="the sum of 4,096 numbers, mean over masks", xlabel="rate")
    right.set_ylabel("share of the sum before")
    right.legend(loc="lower left")
    return figure


def experiment(scale: claim.Scale) -> claim.Result:
    """What 1 becomes, the five lines, and the sum."""
    seeds, draws = scale.pick((3, 100), (10, 1000), (20, 10_000))
    became, factor = factor_finding()
    kept, lost = (left(seeds, draws, drop) for drop in (dropout, dropout_unscaled))
    numbers = {"1 becomes": became, "sum scaled": kept, "sum not scaled": lost}
    findings = [factor, hand_finding(seeds), sum_finding(kept, lost)]
    return claim.Result(findings, draw(became, kept, lost), numbers)


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
