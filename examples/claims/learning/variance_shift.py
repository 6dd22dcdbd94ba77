"""Variance shift: how dropout before a batch norm changes the variance of its input.

In training a batch norm gets dropped and scaled inputs with a larger variance. It keeps a running
average of this variance and divides by it at evaluation, where nothing is dropped. An input of mean
m and second moment s has variance s - m^2 at evaluation and s / (1 - rate) - m^2 in training, a
ratio of 1 / (1 - rate) where m is 0. This is measured on a million normal numbers and on their
positive parts, and then in the networks of batch_norm.py (which says how they learn), on their
1,000 training images: the mean ratio of a batch norm's 128 inputs, in training mode over
evaluation.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from batch_norm import AFTER, BEFORE, LI, make_training
from common import charts, claim
from common.claim import Finding, Result, by_bounds, intervals, verdict_by
from common.nets import run_grid
from dropout_jax import dropout, fold


def experiment(scale: claim.Scale) -> Result:
    rates = scale.pick((0.0, 0.5), (0.0, 0.1, 0.3, 0.5), (0.0, 0.1, 0.2, 0.3, 0.5, 0.7))
    steps, seeds = scale.pick(60, 1000, 3000), range(scale.pick(3, 8, 20))
    draws = scale.pick(10**4, 10**6, 10**7)
    shift = {rate: variance_ratios(rate, draws) for rate in rates}
    # By seed, placement, rate and batch norm.
    ratios = run_grid(make_run(steps), scale.track(seeds, "seeds"), (BEFORE, AFTER), rates)
    last = intervals(ratios[:, BEFORE, 1:, -1], rates[1:])
    numbers = {
        "rates": rates,
        "steps": steps,
        "of one dropout, (measured, closed form)": shift,
        "in the network, by place, rate and batch norm": ratios.mean(0),
        "at the last batch norm after dropout": last,
    }
    return Result(findings(shift, draws, last), picture(shift, ratios), numbers)


def variance_ratios(rate: float, draws: int, drop=dropout):
    """For inputs of mean 0 and for rectified ones: variance in training over that at evaluation."""
    key = jax.random.key(0)
    normal = jax.random.normal(fold(key, "inputs"), (draws,))
    ratios = {}
    for name, x in (("mean 0", normal), ("rectified", jax.nn.relu(normal))):
        mean, square = x.mean(), (x * x).mean()
        expected = (square / (1 - rate) - mean**2) / (square - mean**2)
        measured = drop(x, rate, key=fold(key, "dropout")).var() / x.var()
        ratios[name] = (float(measured), float(expected))
    return ratios


def make_run(steps: int):
    """The run of a seed, a placement and a rate: the ratio of variances at every batch norm."""
    train_network = make_training(steps)

    def run(seed, placement, rate):
        net, running, train, *_ = train_network(seed, placement, rate)
        pairs = zip(running, net(train, running)[1], strict=True)
        return jnp.stack([(a[1] / (b[1] + 1e-5)).mean() for a, b in pairs])

    return run


def findings(shift, draws: int, last) -> list[Finding]:
    """Of one dropout, and of the last batch norm of the networks."""

    def is_closed_form(rate: float) -> bool:
        """By 5 standard errors, sqrt(kurtosis / draws); the kurtosis is below 6 / (1 - rate)."""
        bound = 5 * np.sqrt(6 / (1 - rate) / draws)
        return all(abs(measured / form - 1) < bound for measured, form in shift[rate].values())

    example = ", ".join(f"{n}: {a:.3f} and {b:.3f}" for n, (a, b) in shift[max(shift)].items())
    return [
        Finding(
            "Dropout scales the variance of its output by 1 / (1 - rate) where the mean is 0",
            LI,
            f"{draws:,} draws, measured and closed-form ratio at rate {max(shift)}: {example}",
            verdict_by("the rate is", {rate: is_closed_form(rate) for rate in shift}),
        ),
        by_bounds(
            "So a batch norm after dropout gets a larger variance in training than at evaluation",
            LI,
            "the ratio at the last batch norm, by rate",
            last,
            "the rate is",
            ".2f",
            (1, None),
        ),
    ]


def picture(shift, ratios) -> Figure:
    """The ratio of variances of one dropout by rate, and by batch norm in the networks."""
    figure, (left, right) = charts.panels(6, 6)
    for i, name in enumerate(("mean 0", "rectified")):
        measured, expected = np.array([of_rate[name] for of_rate in shift.values()]).T
        left.plot(list(shift), expected, f"C{i}", label=f"closed form, {name}")
        left.plot(list(shift), measured, f"C{i}o", label=f"measured, {name}")
    left.set(xlabel="rate", ylabel="variance in training / at evaluation", title="one dropout")
    left.legend(fontsize=8)
    series = {
        f"rate {rate}": intervals(ratios[:, BEFORE, i], range(3)).values()
        for i, rate in enumerate(shift)
    }
    charts.lines(right, (1, 2, 3), series, xticks=(1, 2, 3))
    right.set(xlabel="batch norm, from the input", title="batch norms of the networks")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
