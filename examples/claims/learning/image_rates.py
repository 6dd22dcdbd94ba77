"""Rates of dropout on images: an MLP on 1,000 MNIST digits.

The MLP has two hidden layers of 128 with dropout after both, and trains for 200 steps of Adam at
1e-3 on batches of 64; these settings were fixed before. The best rate of a range has the lowest
loss on half of the other digits and is measured on the other half, seed by seed. A seed decides
weights, batches and masks.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data, nets
from common.claim import Interval, Result, interval
from dropout_jax import fold
from gpt_rates import RATES, differences_to_rate_0, judge_best_rate

SRIVASTAVA = "Srivastava et al., Dropout, JMLR 2014 (0.5 for hidden units)"


def experiment(scale: claim.Scale) -> Result:
    split, steps = data.load_mnist(1000), scale.pick(5, 200, 3000)
    halves = [(split.x_test[i::2], split.y_test[i::2]) for i in (0, 1)]

    def run(rate, seed):
        key = jax.random.key(seed)

        def loss(layers, rows, key):
            logits = nets.mlp(layers, split.x_train[rows], rate, key=key)
            return nets.cross_entropy(logits, split.y_train[rows])

        layers = nets.mlp_init(fold(key, "weights"), (784, 128, 128, 10))
        layers = nets.fit(loss, layers, 1000, key, steps=steps)
        logits = [nets.mlp(layers, x, 0.0, key=None) for x, _ in halves]
        losses = [nets.cross_entropy(out, y) for out, (_, y) in zip(logits, halves, strict=True)]
        return jnp.stack(losses), nets.accuracy(logits[1], halves[1][1])

    seeds = jnp.arange(scale.pick(3, 5, 10))
    run = jax.jit(jax.vmap(run, in_axes=(None, 0)))
    results = [run(jnp.float32(rate), seeds) for rate in scale.track(RATES, "rates")]
    losses = np.array([loss.T for loss, _ in results], np.float64).swapaxes(
        0, 1
    )  # (half, rate, seed)
    accuracy = [interval(share) for _, share in results]
    cells = differences_to_rate_0(losses[1])
    findings = [judge_best_rate(0.3, 0.5, {"images": losses}, "vision", SRIVASTAVA)]
    numbers = {"rates": RATES, "loss, difference to rate 0": cells, "accuracy": accuracy}
    return Result(findings, picture(cells, accuracy), numbers)


def picture(cells: dict[float, Interval], accuracy: list[Interval]) -> Figure:
    """The loss and the accuracy by rate."""
    figure, (left, right) = charts.panels(4, 4, height=3.8)
    what = "loss minus that of rate 0, nats\n(below 0: dropout helps)"
    charts.lines(left, list(cells), {"": cells.values()}, xlabel="dropout rate", ylabel=what)
    left.axhline(0, color="gray", linewidth=0.8)
    shares, what = [share.percent() for share in accuracy], "test accuracy, %"
    charts.lines(right, RATES, {"": shares}, xlabel="dropout rate", ylabel=what)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
