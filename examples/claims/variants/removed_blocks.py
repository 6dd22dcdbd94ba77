"""Blocks of a residual net removed after training, with stochastic depth and without.

The digits, the net and its training are those of drop_path.py, with rates of 0, 0.25 or 0.5 for
every block. At test time random blocks are removed, in ten tries; the tries are the same for all
rates. The seed decides split, weights, masks and tries; differences are taken seed by seed.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, data, nets
from common.claim import Finding, Result, Scale, compare, interval, main
from drop_path import DEPTH, net, train
from dropout_jax import fold

RATES, REMOVED, TRIES = (0.0, 0.25, 0.5), (0, 1, 2, 4, 8), 10
FAN = "Fan, Grave and Joulin, Reducing transformer depth on demand, ICLR 2020"


def experiment(scale: Scale) -> Result:
    """Train with each rate, and remove blocks."""
    seeds, steps = scale.pick(3, 6, 20), scale.pick(3, 400, 2000)
    splits = data.stack_splits(functools.partial(data.load_digits, 300), range(seeds))
    scores = {}
    for rate in scale.track(RATES, "rates"):
        of_rate = train((rate,) * DEPTH, splits, steps, accuracy_without_blocks)
        scores[rate] = dict(zip(REMOVED, of_rate.T, strict=True))
    return Result(findings(scores), picture(scores), {"accuracy (rate, removed, seed)": scores})


def accuracy_without_blocks(params, split, key):
    """Test accuracy by the number of removed blocks."""

    def accuracy_without(count, i):
        """Rate 1 removes a block, rate 0 leaves it."""
        order = jax.random.permutation(fold(key, "removed", i), DEPTH)
        logits = net(params, split.x_test, jnp.float32(order < count), key=key)
        return nets.accuracy(logits, split.y_test)

    tries = jnp.arange(TRIES, dtype=jnp.uint32)
    of_count = jax.vmap(accuracy_without, (None, 0))
    return jax.lax.map(lambda count: of_count(count, tries).mean(), jnp.array(REMOVED))


def findings(scores) -> list[Finding]:
    """The accuracy lost by removing blocks, trained with stochastic depth and without."""
    lost = {
        rate: {count: of[count] - of[0] for count in REMOVED if count}
        for rate, of in scores.items()
    }
    return [
        compare(
            "A net trained with dropped layers tolerates the removal of layers at evaluation",
            FAN,
            lost[0.5],
            lost[0.0],
            f"Points of accuracy saved by training with rate 0.5, by blocks removed of {DEPTH}",
            "the blocks removed are",
        )
    ]


def picture(scores) -> Figure:
    """Accuracy as blocks are removed."""
    figure, [axes] = charts.panels(7)
    of_rate = {
        f"rate {rate}" if rate else "no stochastic depth": [interval(100 * x) for x in of.values()]
        for rate, of in scores.items()
    }
    charts.lines(axes, REMOVED, of_rate, spacing=0.06, xticks=REMOVED, ylabel="test accuracy, %")
    axes.set(xlabel=f"blocks removed, of {DEPTH}")
    return figure


if __name__ == "__main__":
    main(experiment, __doc__, __file__)
