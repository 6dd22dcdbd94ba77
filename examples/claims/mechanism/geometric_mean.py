"""Weight scaling of one softmax layer is the geometric mean of its sub-networks.

A softmax layer of 10 inputs and 5 classes with normal weights, in float64: all 1,024 masks of the
inputs are enumerated, each with its probability under dropout, for five seeds. The seed decides the
inputs, the weights and the biases.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim
from common.claim import Finding, Result, verdict
from dropout_jax import apply_mask

RATES, INPUTS = (0.2, 0.5, 0.8), 10
EXACT = 1e-14  # a distance of probabilities that rounding to float64 explains
SOURCES = (
    "Hinton et al., arXiv 1207.0580, 2012; Baldi and Sadowski, NeurIPS 2013; "
    "Goodfellow et al., Deep Learning, 2016, section 7.12"
)


def experiment(scale: claim.Scale) -> Result:
    seeds = range(scale.pick(3, 5, 20))
    distances_by_rate = {}
    for rate in RATES:
        each = [distances(*enumerate_sub_networks(seed, rate)) for seed in seeds]
        distances_by_rate[rate] = np.array(each).T
    figure = picture(distances_by_rate, *enumerate_sub_networks(0, 0.5))
    return Result(findings(distances_by_rate), figure, {"one layer": distances_by_rate})


def enumerate_sub_networks(seed, rate, apply=apply_mask):
    """Every sub-network's log-probabilities and probability, and the softmax of weight scaling."""
    rng = np.random.default_rng(seed)
    x, weights, bias = (rng.normal(size=size) for size in ((INPUTS,), (INPUTS, 5), (5,)))
    masks = (np.arange(2**INPUTS)[:, None] >> np.arange(INPUTS)) % 2 == 1
    kept = float(np.float32(1) - np.float32(rate))  # the mask's own probability
    likely = (kept ** masks.sum(1) * (1 - kept) ** (~masks).sum(1))[:, None]
    with jax.enable_x64(True):
        dropped = np.asarray(apply(jnp.broadcast_to(x, masks.shape), masks, rate))
    logs = scipy.special.log_softmax(dropped @ weights + bias, axis=1)
    return logs, likely, scipy.special.softmax(x @ weights + bias)


def means(logs, likely):
    """The sub-networks' normalised geometric mean, and their arithmetic mean."""
    return scipy.special.softmax((likely * logs).sum(0)), (likely * np.exp(logs)).sum(0)


def distances(logs, likely, scaled):
    """The largest differences of weight scaling from both means."""
    return [np.abs(scaled - mean).max() for mean in means(logs, likely)]


def findings(distances_by_rate) -> list[Finding]:
    geometric, arithmetic = (
        max(each[i].max() for each in distances_by_rate.values()) for i in (0, 1)
    )
    return [
        Finding(
            "For one softmax layer weight scaling is exactly the sub-networks' geometric mean",
            SOURCES,
            f"all 1,024 masks at {len(distances_by_rate)} rates: at most {geometric:.1e} from the "
            f"normalised geometric mean, in float64 (the claim: below {EXACT:.0e}); "
            f"{arithmetic:.2f} from the arithmetic mean",
            verdict(geometric < EXACT),
        )
    ]


def picture(distances_by_rate, logs, likely, scaled):
    figure, (left, right) = charts.panels(5.5, 5.5)
    best = scaled.argmax()
    left.hist(np.exp(logs[:, best]), 40, weights=likely[:, 0], color="0.8")
    for i, name in enumerate(("geometric mean", "arithmetic mean")):
        left.axvline(means(logs, likely)[i][best], color=f"C{i}", lw=3, label=name)
        heights = [max(each[i].max(), 1e-17) for each in distances_by_rate.values()]
        right.bar(np.arange(len(distances_by_rate)) + 0.4 * i - 0.2, heights, 0.38, label=name)
    left.axvline(scaled[best], color="black", ls="--", label="weight scaling")
    left.set(xlabel="probability of one class, rate 0.5", ylabel="share of the sub-networks")
    left.legend(fontsize=8)
    right.set(yscale="log", ylim=(1e-17, 1e3), xlabel="rate")
    right.set_ylabel("largest distance of weight scaling to the mean")
    right.axhline(EXACT, color="0.3", ls=":")
    right.set_xticks(range(len(distances_by_rate)), [str(rate) for rate in distances_by_rate])
    right.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
