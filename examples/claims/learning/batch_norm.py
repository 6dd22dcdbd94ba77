"""Batch norm: the cost of dropout before it, and dropout after it.

The network has three hidden layers of 128 units, each dense, batch norm, ReLU, and learns 1,000
MNIST digits of 14 x 14 pixels by 1,000 steps of Adam (at 1e-3, batches of 64). Dropout follows the
first two ReLUs ("before", as batch norms come after it) or the last one alone ("after" all batch
norms). Evaluation takes the statistics of the training set in training mode, the limit of running
averages, or recomputes them without dropout. Accuracy is that of 2,000 other digits. A seed decides
the split, initial weights and batches. variance_shift.py measures the same networks.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data
from common.claim import Finding, Result, by_cell, intervals
from common.nets import accuracy, cross_entropy, fit, mlp_init, normed_mlp, run_grid
from dropout_jax import fold

BEFORE, AFTER = range(2)
PLACEMENTS = (1.0, 1.0, 0.0), (0.0, 0.0, 1.0)  # times the rate, by hidden layer
LI = 'Li et al., "Understanding the disharmony between dropout and batch normalization", CVPR 2019'


def experiment(scale: claim.Scale) -> Result:
    rates = scale.pick((0.0, 0.5), (0.0, 0.1, 0.3, 0.5), (0.0, 0.1, 0.2, 0.3, 0.5, 0.7))
    steps, seeds = scale.pick(60, 1000, 3000), range(scale.pick(3, 8, 20))
    running, recomputed = run_grid(
        make_run(steps), scale.track(seeds, "seeds"), (BEFORE, AFTER), rates
    )
    before, after = running.swapaxes(0, 1)  # accuracy by seed and rate, the first of which is 0
    changes = {
        "before, over none": before - before[:, :1],
        "after, over none": after - after[:, :1],
        "after, over before": after - before,
        "again, over running": (recomputed - running)[:, BEFORE],
    }
    differences = {name: intervals(change[:, 1:], rates[1:]) for name, change in changes.items()}
    numbers = {
        "rates": rates,
        "steps": steps,
        "accuracy by place and rate, running statistics": running.mean(0),
        "accuracy by place and rate, statistics taken again": recomputed.mean(0),
        "differences": differences,
    }
    return Result(findings(differences), picture(differences), numbers)


def make_run(steps: int):
    """The run of a seed, a placement and a rate: test accuracy with both kinds of statistics."""
    train_network = make_training(steps)

    def run(seed, placement, rate):
        net, running, train, test, digits = train_network(seed, placement, rate)
        recomputed = net(train)[1]
        return [accuracy(net(test, of)[0], digits) for of in (running, recomputed)]

    return run


def make_training(steps: int):
    """A function that trains for a seed, a placement and a rate: network, statistics and data."""
    images, labels = data.load_all_mnist()
    images = data.downsample(images).reshape(len(images), -1)

    def train_network(seed, placement, rate):
        key, rates = jax.random.key(seed), rate * jnp.array(PLACEMENTS)[placement]
        train, test = jnp.split(jax.random.permutation(fold(key, "images"), 5000)[:3000], [1000])
        params = mlp_init(fold(key, "weights"), (196, 128, 128, 128, 10))

        def loss(params, rows, key):
            logits, _ = normed_mlp(params, images[train[rows]], rates, key=key)
            return cross_entropy(logits, labels[train[rows]])

        params = fit(loss, params, len(train), fold(key, "fit"), steps=steps)

        def net(x, statistics=None, key=None):
            return normed_mlp(params, x, rates, statistics, key=key)

        running = net(images[train], key=fold(key, "statistics"))[1]
        return net, running, images[train], images[test], labels[test]

    return train_network


def findings(differences) -> list[Finding]:
    """Of the differences in accuracy, by rate."""

    def finding(text: str, name: str, what: str, sign: int = 1) -> Finding:
        return by_cell(text, LI, f"{what}, by rate", differences[name], "the rate is", "+.1%", sign)

    worse = "Dropout before batch norm makes a network worse"
    after = "Dropout belongs after all batch norms"
    again = "Recomputing the statistics without dropout repairs it"
    return [
        finding(worse, "before, over none", "test accuracy minus that without dropout", -1),
        finding(after, "after, over before", "test accuracy minus that with dropout before"),
        finding(again, "again, over running", "test accuracy gained, dropout before batch norm"),
    ]


def picture(differences) -> Figure:
    """The differences in test accuracy, by rate."""
    figure, panels = charts.panels(6, 6)
    titles = ("against no dropout", "against dropout before (again: other statistics)")
    pairs = (list(differences)[:2], list(differences)[2:])
    for axes, pair, title in zip(panels, pairs, titles, strict=True):
        rates = list(differences[pair[0]])
        labels = {"xlabel": "rate", "ylabel": "test accuracy, points"}
        series = {name: [cell.percent() for cell in differences[name].values()] for name in pair}
        charts.lines(axes, rates, series, spacing=0.006, xticks=rates, title=title, **labels)
        axes.axhline(0, color="black", linewidth=0.8)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
