"""No single point of failure: hidden units removed at test time.

MNIST's 5,000 (4,000 to train on, 1,000 to test): an MLP of two hidden layers of 128 ReLU units,
Adam at 1e-3, 600 steps of 64, trained without dropout and with 0.2 and 0.5 on its hidden layers,
five seeds. At test time units are set to 0 and the others do not change; each share is removed five
times at random. The seed decides the split, the weights, the batches and the masks.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data, nets
from common.claim import Finding, Result, by_cell, describe, interval, verdict_by
from dropout_jax import dropout_unscaled, fold

RATES = (0.0, 0.2, 0.5)
REMOVED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
HIDDEN = 128
HINTON = "Hinton et al., arXiv 1207.0580, 2012; Srivastava et al., JMLR 2014"


def experiment(scale: claim.Scale) -> Result:
    seeds, steps, draws = scale.pick((3, 5, 1), (5, 600, 5), (10, 2000, 20))
    splits = data.stack_splits(
        scale.pick(data.load_digits, data.load_mnist, data.load_mnist), range(seeds)
    )
    run = functools.partial(train_and_remove, steps=steps, draws=draws)
    results = nets.run_rates_and_seeds(run, RATES, splits)
    names = ("accuracy by rate, seed and share removed", "worst unit")
    numbers = {"removed": REMOVED, **dict(zip(names, results, strict=True))}
    return Result(findings(*results), picture(*results), numbers)


def train_and_remove(rate, seed, split, *, steps, draws):
    """Accuracies by the share removed, and the rise of the loss without the most important unit."""
    params = nets.train_mlp(split, seed, rate, (HIDDEN, HIDDEN), steps=steps)
    everything, key = jnp.ones((2, HIDDEN)), jax.random.key(seed)

    def accuracy(i, share):
        masks = dropout_unscaled(everything, share, key=fold(key, "remove", i))
        return nets.accuracy(with_units(params, split.x_test, masks), split.y_test)

    def loss_without(unit):
        masks = everything.at[unit // HIDDEN, unit % HIDDEN].set(0)
        return nets.cross_entropy(with_units(params, split.x_test, masks), split.y_test)

    draw_indices, shares = jnp.arange(draws, dtype=jnp.uint32), jnp.array(REMOVED)
    accuracies = jax.lax.map(lambda i: jax.lax.map(lambda s: accuracy(i, s), shares), draw_indices)
    losses = jax.lax.map(loss_without, jnp.arange(2 * HIDDEN))
    whole = nets.cross_entropy(with_units(params, split.x_test, everything), split.y_test)
    return accuracies.mean(0), losses.max() - whole


def with_units(params, x, masks):
    """Logits with only the units that the masks keep."""
    for layer, mask in zip(params[:-1], masks, strict=True):
        x = jax.nn.relu(nets.dense(layer, x)) * mask
    return nets.dense(params[-1], x)


def findings(curves, rises) -> list[Finding]:
    """Each rate against no dropout, paired by seed; curves (rate, seed, removed)."""
    less = curves[1:] - curves[1:, :, :1] - (curves[0] - curves[0, :, :1])  # of accuracy lost
    cells = {  # by the share removed, then by rate
        share: {rate: interval(less[i, :, j]).percent() for i, rate in enumerate(RATES[1:])}
        for j, share in enumerate(REMOVED)
        if share
    }
    everywhere = {
        share: all(cell.positive for cell in by_rate.values()) for share, by_rate in cells.items()
    }
    milder = {rate: interval(rises[0] - rises[1 + i]) for i, rate in enumerate(RATES[1:])}
    return [
        Finding(
            "Trained with dropout, a network loses less accuracy when hidden units are removed",
            HINTON,
            "points of accuracy saved when half of the units are removed, by rate in "
            f"training: {describe(cells[0.5], '+.1f')}; "
            f"when 0.9 are removed: {describe(cells[0.9], '+.1f')}",
            verdict_by("the share removed is", everywhere),
        ),
        by_cell(
            "No single point of failure: with dropout no one unit matters as much",
            HINTON,
            f"the worst of {2 * HIDDEN} units, removed alone, raises the test loss by "
            f"{interval(rises[0]):.3f} nats without dropout; reduction with dropout, by rate",
            milder,
            "the rate is",
        ),
    ]


def picture(curves, rises):
    figure, (left, right) = charts.panels(6.5, 4)
    series = {f"training with {rate}": map(interval, curves[i].T) for i, rate in enumerate(RATES)}
    charts.lines(left, REMOVED, series, xlabel="share of hidden units removed")
    left.set_ylabel("test accuracy")
    worst = {rate: {"": interval(rises[i])} for i, rate in enumerate(RATES)}
    charts.bars(right, worst, xlabel="rate in training", title="worst single unit removed")
    right.set_ylabel("rise of test loss (nats)")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
