"""How hidden features correlate, with dropout and without.

MNIST's 5,000 (4,000 to train on, 1,000 to test): an MLP of two hidden layers of 128 ReLU units,
Adam at 1e-3, 600 steps of 64, trained without dropout and with 0.2 and 0.5 on its hidden layers,
five seeds: the networks of co_adaptation.py. Correlations are between the outputs of two units of a
layer over the test set, dropout off, without units that never change. The seed decides the split,
the weights, the batches and the masks.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data, nets
from common.claim import Finding, Result, by_cell, describe, interval

RATES = (0.0, 0.2, 0.5)
READ = "read into Hinton et al., arXiv 1207.0580, 2012; Srivastava et al., JMLR 2014, section 7.1"


def experiment(scale: claim.Scale) -> Result:
    seeds, steps = scale.pick((3, 5), (5, 600), (10, 2000))
    splits = data.stack_splits(
        scale.pick(data.load_digits, data.load_mnist, data.load_mnist), range(seeds)
    )
    run = functools.partial(train_and_correlate, steps=steps)
    correlations = nets.run_rates_and_seeds(run, RATES, splits)
    return Result(findings(correlations), picture(correlations), {"correlation": correlations})


def train_and_correlate(rate, seed, split, *, steps):
    """The correlations of both layers."""
    params = nets.train_mlp(split, seed, rate, (128, 128), steps=steps)
    first = jax.nn.relu(nets.dense(params[0], split.x_test))
    return jnp.array([correlation(first), correlation(jax.nn.relu(nets.dense(params[1], first)))])


def correlation(features):
    """Mean absolute correlation between two different units, of those that vary."""
    centred = features - features.mean(0)
    spread = jnp.sqrt((centred**2).sum(0))
    live = spread > 1e-4
    unit = jnp.where(live, centred / jnp.where(live, spread, 1), 0)
    count = live.sum()
    return (jnp.abs(unit.T @ unit).sum() - count) / jnp.maximum(count * (count - 1), 1)


def findings(correlations) -> list[Finding]:
    """Each rate against no dropout, paired by seed."""
    plain = {f"layer {layer}": interval(correlations[0, :, layer - 1]) for layer in (1, 2)}
    lower = {
        f"{rate} in layer {layer}": interval((correlations[0] - correlations[i])[:, layer - 1])
        for i, rate in enumerate(RATES)
        for layer in (1, 2)
        if rate
    }
    return [
        by_cell(
            "Dropout prevents co-adaptation, so that hidden features correlate less",
            READ,
            f"mean absolute correlation without dropout {describe(plain, '.3f')}; "
            "reduction with dropout, at rate",
            lower,
            "the rate is",
        )
    ]


def picture(correlations):
    figure, (axes,) = charts.panels(7)
    bars = {
        f"hidden layer {layer}": {
            f"rate {rate}": interval(correlations[i, :, layer - 1]) for i, rate in enumerate(RATES)
        }
        for layer in (1, 2)
    }
    charts.bars(axes, bars, ylabel="mean absolute correlation of two units")
    axes.set_ylim(0, 0.32)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
