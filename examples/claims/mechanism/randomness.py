"""The dropped share converges to the rate.

Ten chains of draws at each of three rates; the elements that keep_mask drops are counted after 100,
1,000, ... 100 million draws. The seed decides a chain's keys, and every chain has its own seed. The
expected share is the mask's own, 1 - T / 2^32, at most 2^-25 from the rate.
"""

import functools
import sys
from pathlib import Path

import jax
import numpy as np
import scipy.stats

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim
from common.claim import Finding, Result, describe, interval, verdict
from dropout_jax import fold, keep_mask

RATES = (0.1, 0.2, 0.5)
CHUNK = 9_000_000  # elements; divides the number of draws between two later counts


def experiment(scale: claim.Scale) -> Result:
    chains, lengths = scale.pick((5, 4), (10, 7), (20, 8))
    ends = 100 * 10 ** np.arange(lengths)
    counts_by_rate = {
        rate: np.stack(
            [count_dropped(fold(jax.random.key(i), str(rate)), rate, ends) for i in range(chains)]
        )
        for rate in scale.track(RATES, "rates")
    }
    numbers = {"draws": ends, "dropped": counts_by_rate}
    return Result(findings(counts_by_rate, ends), picture(counts_by_rate, ends), numbers)


def count_dropped(key, rate, ends, mask=keep_mask):
    """The number of dropped draws among the first n, for each n of `ends`; each part has a key."""
    counts = []
    for i, draws in enumerate(np.diff(ends, prepend=0)):
        part, size = fold(key, "part", i), min(int(draws), CHUNK)
        counts.append(
            sum(int(count_chunk(fold(part, j), rate, size, mask)) for j in range(draws // size))
        )
    return np.cumsum(counts)


@functools.partial(jax.jit, static_argnames=("size", "mask"))
def count_chunk(key, rate, size, mask):
    return (~mask(key, rate, (size,))).sum()


def drop_probability(rate):
    """The exact probability that a mask drops an element."""
    return 1 - float(np.float32(1) - np.float32(rate))


def tail_probabilities(counts, rate, ends):
    """The probability of a count at least as extreme: twice the smaller tail."""
    binomial = scipy.stats.binom(ends, drop_probability(rate))
    return np.minimum(2 * np.minimum(binomial.cdf(counts), binomial.sf(counts - 1)), 1)


def fit_slopes(counts_by_rate, ends):
    """For each chain, the exponent of its deviation as a power of the draws."""
    log = np.log10(ends)
    log = (log - log.mean()) / ((log - log.mean()) ** 2).sum()
    off = [counts / ends - drop_probability(rate) for rate, counts in counts_by_rate.items()]
    half_a_draw = 0.5 / ends  # a count is an integer: smaller deviations are chance
    return np.log10(np.maximum(np.abs(np.concatenate(off)), half_a_draw)) @ log


def findings(counts_by_rate, ends) -> list[Finding]:
    p = np.stack(
        [tail_probabilities(counts, rate, ends) for rate, counts in counts_by_rate.items()]
    )
    last = {rate: interval(counts[:, -1] / ends[-1]) for rate, counts in counts_by_rate.items()}
    least = 0.05 / p.size  # 95 % for all counts together
    power = interval(fit_slopes(counts_by_rate, ends))
    return [
        Finding(
            f"The dropped share is in the binomial envelope of the rate, to {ends[-1]:.0e} draws",
            "the law of large numbers; the definition in Srivastava et al., Dropout, JMLR 2014",
            f"{(p > 0.05).mean():.1%} of {p.size} counts are in the 95 % envelope of one count; "
            f"the rarest has p = {p.min():.2g} (the claim: at least {least:.2g}, that is 95 % for "
            f"all counts together). Shares at the end, by rate: {describe(last, '.6f')}",
            verdict(bool(p.min() >= least)),
        ),
        Finding(
            "The share's deviation from the rate falls with the square root of the draws",
            "the central limit theorem",
            f"the deviation falls as draws to the power {power:.2f} "
            "(the claim: the interval is within 0.1 of -0.5)",
            verdict(power.low > -0.6 and power.high < -0.4),
        ),
    ]


def picture(counts_by_rate, ends):
    figure, panels = charts.panels(4, 4, 4)
    for axes, (rate, counts) in zip(panels, counts_by_rate.items(), strict=True):
        share = drop_probability(rate)
        top = scipy.stats.binom(ends, share).ppf(0.975) / ends - share
        axes.fill_between(ends, top, 1e-9, color="C0", alpha=0.2, lw=0, label="95 % envelope")
        axes.loglog(ends, np.abs(counts / ends - share).T, ".-", c="0.4", lw=0.5, ms=4)
        axes.axhline(max(abs(share - rate), 1e-9), c="C3", ls=":", label="expected share - rate")
        axes.set(title=f"rate {rate}", xlabel="draws", ylim=(1e-7, 0.2))
    panels[0].legend(loc="lower left", fontsize=8)
    panels[0].set_ylabel("|dropped share - expected share|, a line a chain")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
