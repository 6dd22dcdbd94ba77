"""Cost: training steps to the same loss, with dropout and without.

An MLP of two hidden layers of 128 units, dropout on both, learns 4,000 MNIST digits of 14 x 14
pixels by Adam (at 1e-3, batches of 64). The loss is that of all 4,000, dropout off, every 25 steps;
a run reaches a loss at the first evaluation below it, interpolated between evaluations. Ratios of
steps are against the same seed without dropout, which decides the split, initial weights and
batches.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data
from common.claim import Finding, Interval, Result, describe, interval, verdict_by
from common.nets import cross_entropy, fit_and_evaluate, mlp, mlp_init, run_grid
from dropout_jax import fold

EVERY, TARGETS = 25, (0.3, 0.1, 0.03)
ALEXNET = 'Krizhevsky et al., "ImageNet classification with deep convolutional ...", NeurIPS 2012'
SRIVASTAVA = "Srivastava et al., JMLR 2014, conclusion"


def experiment(scale: claim.Scale) -> Result:
    rates = scale.pick((0.0, 0.5), (0.0, 0.1, 0.2, 0.3, 0.5), (0.0, 0.1, 0.2, 0.3, 0.5, 0.7))
    steps, seeds = scale.pick(200, 4000, 12000), range(scale.pick(3, 5, 10))
    targets = scale.pick((1.5, 1.0), TARGETS, TARGETS)
    # By seed, rate and evaluation.
    losses = run_grid(make_run(steps), scale.track(seeds, "seeds"), rates)
    ratios = {target: step_ratios(losses, target, rates) for target in targets}
    numbers = {
        "rates": rates,
        "looks, in steps": EVERY,
        "training loss by rate and look": losses.mean(0),
        "steps to the same loss, as a ratio, by loss and rate": ratios,
    }
    return Result(findings(ratios), picture(losses, rates, ratios), numbers)


def make_run(steps: int):
    """The run of a seed and a rate: the training loss, dropout off, at every evaluation."""
    images, labels = data.load_all_mnist()
    images = data.downsample(images).reshape(len(images), -1)

    def run(seed, rate):
        key = jax.random.key(seed)
        train = jax.random.permutation(fold(key, "images"), len(images))[:4000]
        params = mlp_init(fold(key, "weights"), (196, 128, 128, 10))

        def loss(params, rows, key):
            rows = train[rows]
            return cross_entropy(mlp(params, images[rows], rate, key=key), labels[rows])

        def evaluate(params):
            return loss(params, jnp.arange(4000), None)

        fitting = (loss, params, 4000, fold(key, "fit"), evaluate)
        return fit_and_evaluate(*fitting, evaluations=steps // EVERY, steps=steps)[1]

    return run


def first_step_below(losses, target: float) -> float:
    """The step at which the loss first falls to the target; NaN if it never does.

    The logarithm of the loss is interpolated linearly between evaluations.
    """
    losses = np.asarray(losses, np.float64)
    below = np.flatnonzero(losses <= target)
    if len(below) == 0:
        return np.nan
    i = below[0]
    if i == 0:
        return float(EVERY)
    share = np.log(losses[i - 1] / target) / np.log(losses[i - 1] / losses[i])
    return float(EVERY * (i + share))


def step_ratios(losses, target: float, rates) -> dict[float, Interval | None]:
    """Steps to the target by rate, as a multiple of those without dropout; None if not reached."""
    steps = np.array([[first_step_below(run, target) for run in seed] for seed in losses])
    ratios = {rate: steps[:, i] / steps[:, 0] for i, rate in enumerate(rates) if rate}
    return {r: None if np.isnan(x).any() else interval(x) for r, x in ratios.items()}


def findings(ratios) -> list[Finding]:
    """A claim holds where the ratio of steps is within its bounds."""
    cells = {target: by_rate[0.5] for target, by_rate in ratios.items()}
    texts = {target: f"{r:.2f}" if r else "not reached" for target, r in cells.items()}
    what = "ratio of steps at rate 0.5 to those at 0"
    condition = "the training loss to be reached is"
    results = []
    for text, source, low, high in (
        ("Dropout at rate 0.5 roughly doubles the iterations", ALEXNET, 1.5, 2.5),
        ("Dropout at rate 0.5 takes 2 to 3 times longer to train", SRIVASTAVA, 2, 3),
    ):
        bounds = f"(the claim: within {low} to {high})"
        measured = f"{what}, by training loss: {describe(texts, '')} {bounds}"
        holds = {t: bool(r) and low <= r.low and r.high <= high for t, r in cells.items()}
        results.append(Finding(text, source, measured, verdict_by(condition, holds)))
    return results


def picture(losses, rates, ratios) -> Figure:
    """Training loss by steps, and the ratio of steps by rate."""
    figure, (left, right) = charts.panels(6.5, 6.5)
    steps = EVERY * (1 + np.arange(losses.shape[-1]))
    for rate, curve in zip(rates, losses.mean(0), strict=True):
        left.plot(steps, curve, label=f"rate {rate}")
    left.set(yscale="log", xlabel="step", ylabel="training loss, nats, dropout off")
    left.legend(fontsize=8)
    for i, (target, by_rate) in enumerate(ratios.items()):
        left.axhline(target, color="gray", linestyle=":", linewidth=1)
        reached = {rate: ratio for rate, ratio in by_rate.items() if ratio}
        rates_shifted = np.array(list(reached)) + 0.005 * i
        charts.points(right, rates_shifted, reached.values(), f"to a loss of {target}")
    right.set(xlabel="rate", ylabel="steps / steps without dropout")
    right.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
