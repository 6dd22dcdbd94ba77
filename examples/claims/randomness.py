"""Masks differ from call to call, and the dropped share converges to the rate.

Every chain of draws has keys of its own; what is counted are the elements that keep_mask drops.
The expected share is the mask's own, 1 - T / 2^16, at most 2^-17 from the rate.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from common import claim
from common.claim import Finding, interval
from dropout_jax import dropout, fold, keep_mask

RATES = (0.1, 0.2, 0.5)
FIRST = 100  # draws at the first look; each next look is at ten times as many


def share_dropped(rate):
    """The probability of dropping that a mask really has."""
    return 1 - float(np.rint((1 - np.float32(rate)) * 2**16)) / 2**16


def looks(most):
    """100, 1,000, ... draws."""
    return FIRST * 10 ** np.arange(round(np.log10(most / FIRST)) + 1)


def dropped(key, rate, ends, mask=keep_mask):
    """How many of the first n draws are dropped, for each n of `ends`: each part has a key."""
    parts = np.diff(ends, prepend=0)
    counts = [count(fold(key, "part", i), rate, int(n), mask) for i, n in enumerate(parts)]
    return np.cumsum(counts)


def count(key, rate, draws, mask, largest=9_000_000):
    """The dropped among many draws, in calls of one shape."""
    size = min(draws, largest)
    assert draws % size == 0, (draws, size)
    return sum(int(_count(fold(key, i), rate, size, mask)) for i in range(draws // size))


def _count(key, rate, size, mask):
    return (~mask(key, rate, (size,))).sum()


_count = jax.jit(_count, static_argnames=("size", "mask"))


def calls_finding(calls=1000, drop=dropout):
    """The same input many times: with a key a call, and with one key."""
    x, key = jnp.ones(256), jax.random.key(0)
    run = jax.jit(jax.vmap(lambda key: drop(x, 0.5, key=key) != 0))
    keys = jax.vmap(lambda i: fold(key, i))(jnp.arange(calls, dtype=jnp.uint32))
    different = len(np.unique(np.asarray(run(keys)), axis=0))
    same = len(np.unique(np.asarray(run(jnp.broadcast_to(key, (calls,)))), axis=0))
    return Finding(
        "Masks differ between calls, and only by the key",
        "Srivastava et al., Dropout, JMLR 2014, section 5.1",
        f"{calls} calls on 256 elements at rate 0.5: {different} different masks with a key each, "
        f"{same} with one key",
        claim.verdict(different == calls and same == 1),
    )


def tails(counts, rate, ends):
    """How likely a count at least as far from the middle is: the smaller tail, twice."""
    binomial = scipy.stats.binom(ends, share_dropped(rate))
    return np.minimum(2 * np.minimum(binomial.cdf(counts), binomial.sf(counts - 1)), 1)


def envelope_finding(found, ends):
    """Whether every chain stays inside at every look: 95 % for all of them together."""
    p = np.stack([tails(counts, rate, ends) for rate, counts in found.items()])
    last = {rate: interval(counts[:, -1] / ends[-1]) for rate, counts in found.items()}
    return Finding(
        f"The dropped share stays in the binomial envelope of the rate, to {ends[-1]:.0e} draws",
        "the law of large numbers; the definition of dropout, Srivastava et al., JMLR 2014",
        f"{(p > 0.05).mean():.1%} of {p.size} looks are in the envelope of 95 % of one look "
        f"({p.shape[1]} chains a rate); the rarest has p = {p.min():.2g}, and below "
        f"{0.05 / p.size:.2g} it were outside that of all looks together. Shares at the end: "
        + "; ".join(f"rate {rate}: {share:.6f}" for rate, share in last.items()),
        claim.verdict(bool(p.min() >= 0.05 / p.size)),
    )


def slopes(found, ends):
    """For each chain, the exponent of its deviation as a power of the draws."""
    log = np.log10(ends)
    log = (log - log.mean()) / ((log - log.mean()) ** 2).sum()
    off = [counts / ends - share_dropped(rate) for rate, counts in found.items()]
    half_a_draw = 0.5 / ends  # no count is nearer than it can be, whatever luck says
    return np.log10(np.maximum(np.abs(np.concatenate(off)), half_a_draw)) @ log


def speed_finding(found, ends):
    """Deviation as a power of the draws."""
    power = interval(slopes(found, ends))
    return Finding(
        "The share comes nearer to the rate by the square root of the draws",
        "the central limit theorem",
        f"the deviation falls as draws to the power {power:.2f}, over "
        f"{sum(map(len, found.values()))} chains (the claim: the interval is within 0.1 of -0.5)",
        claim.verdict(power.low > -0.6 and power.high < -0.4),
    )


def draw(found, ends):
    """Deviation against draws, with the envelope."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, (rate, counts) in zip(panels, found.items(), strict=True):
        p = share_dropped(rate)
        top = scipy.stats.binom(ends, p).ppf(0.975) / ends - p
        panel.fill_between(ends, top, 1e-9, color="C0", alpha=0.2, lw=0, label="95 % envelope")
        for i, off in enumerate(np.abs(counts / ends - p)):
            panel.loglog(ends, off, ".-", c="0.4", lw=0.5, ms=4, label=None if i else "a chain")
        if p != rate:
            panel.axhline(abs(p - rate), color="C3", ls=":", label="expected share - rate")
        panel.set(title=f"rate {rate}", xlabel="draws", ylim=(1e-7, 0.2))
    panels[0].legend(loc="lower left", fontsize=8)
    figure.axes[0].set_ylabel("|dropped share - expected share|")
    return figure


def experiment(scale: claim.Scale) -> claim.Result:
    """Chains of draws at three rates."""
    chains, most = scale.pick((5, 10**5), (10, 10**8), (20, 10**9))
    ends = looks(most)
    found = {
        rate: np.stack(
            [dropped(fold(jax.random.key(i), str(rate)), rate, ends) for i in range(chains)]
        )
        for rate in scale.track(RATES, "rates")
    }
    findings = [calls_finding(), envelope_finding(found, ends), speed_finding(found, ends)]
    numbers = {"draws": ends, "dropped": found}
    return claim.Result(findings, draw(found, ends), numbers)


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
