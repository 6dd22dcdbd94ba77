"""How many Monte Carlo samples weight scaling is worth.

The networks are those of sub_networks.py: digits of 8 x 8, MLPs of 1, 2 and 4 hidden layers of 64
ReLU units trained with dropout 0.5 by 1,000 steps, five seeds. N samples are the first N of 200
sub-networks of each, and their predictions are averaged; "the average" is that of 400 others. The
seed decides the split, the weights, the batches and the masks.
"""

import functools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim
from common.claim import Finding, Result, by_cell, describe, interval, is_between, verdict_by
from sub_networks import ONE_POINT, SRIVASTAVA, WHERE, measure_by_depth, total_variation

FEW, ABOUT = 5, 50  # samples


def experiment(scale: claim.Scale) -> Result:
    most = scale.pick(50, 200, 1000)
    counts = [n for n in (1, 2, FEW, 10, 20, ABOUT, 100, 200, 500, 1000) if n <= most]
    results = measure_by_depth(scale, functools.partial(measure_samples, counts=counts))
    numbers = {"samples": counts, "deep": results}
    return Result(findings(results, counts), picture(results, counts), numbers)


def measure_samples(scaled, own, rest, labels, counts) -> dict[str, list[float]]:
    """Distance to the average, test error and log-loss: of weight scaling, then of N samples."""
    average = np.exp(rest).mean(0)
    predicted = [np.exp(scaled), *(np.exp(own[:count]).mean(0) for count in counts)]
    return {
        "distance": [total_variation(average, p) for p in predicted],
        "error": [(p.argmax(-1) != labels).mean() for p in predicted],
        "log-loss": [-np.log(p[np.arange(len(p)), labels]).mean() for p in predicted],
    }


def findings(results, counts) -> list[Finding]:
    def excess(name, count):
        """The excess of `count` samples over weight scaling, by depth."""
        column = 1 + counts.index(count)
        return {depth: interval(x[name][:, column] - x[name][:, 0]) for depth, x in results.items()}

    few, enough, many = (excess("error", count) for count in (FEW, ABOUT, counts[-1]))
    loss = excess("log-loss", counts[-1])
    return [
        Finding(
            f"A few samples are worse than weight scaling, about {ABOUT} are as good",
            SRIVASTAVA,
            "test error minus that of weight scaling (as good: within one point), by hidden "
            f"layers: {FEW} samples {describe(few, '.2%')}; "
            f"{ABOUT} samples {describe(enough, '.2%')}",
            verdict_by(
                WHERE, {d: few[d].positive and is_between(enough[d], ONE_POINT) for d in results}
            ),
        ),
        by_cell(
            "With many more samples the average is a little better than weight scaling",
            f"{SRIVASTAVA}, which adds: within a standard deviation",
            f"of {counts[-1]} samples minus that of weight scaling, by hidden layers: log-loss in "
            f"nats {describe(loss, '.3f')}; test error",
            many,
            WHERE,
            ".2%",
            sign=-1,
        ),
    ]


def picture(results, counts):
    figure, (left, middle, right) = charts.panels(4.6, 4.6, 4.6)

    def series(name, less):
        every = {d: x[name][:, 1:] - less * x[name][:, :1] for d, x in results.items()}
        return {f"hidden layers: {d}": map(interval, each.T) for d, each in every.items()}

    charts.lines(left, counts, series("distance", 0), title="dashed: weight scaling", yscale="log")
    charts.lines(middle, counts, series("error", 1), title="test error less weight scaling's")
    charts.lines(right, counts, series("log-loss", 1), title="test log-loss less weight scaling's")
    for i, each in enumerate(results.values()):
        left.axhline(each["distance"][:, 0].mean(), color=f"C{i}", ls="--")
    for axes, label in ((left, "total variation to the average"), (middle, ""), (right, "nats")):
        axes.set(xscale="log", xlabel="Monte Carlo samples", ylabel=label)
    for axes in (middle, right):
        axes.axhline(0, color="black", lw=0.8)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
