"""Learned rates (concrete dropout) against fixed ones, and against none.

The data, the MLP and its training are those of learned_rates.py, with the rates learned from 0.1;
or every layer has the same fixed rate, with concrete dropout's penalty on the weights at that rate.
The seed decides split, weights and noise; differences are taken seed by seed.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

import learned_rates
from common import charts, nets
from common.claim import Finding, Result, Scale, compare, interval, main
from dropout_jax import dropout, fold
from learned_rates import GAL, SIZES

FIXED = (0.0, 0.1, 0.5)


def experiment(scale: Scale) -> Result:
    """Train with learned rates and with each fixed one, at every size."""
    splits, steps = learned_rates.make_splits(scale)
    scores = {}
    for rate in scale.track(("learned", *FIXED), "rates"):
        if rate == "learned":
            of_rate = learned_rates.train([0.1], splits, steps)[1]
        else:
            of_rate = train([rate], splits, steps)
        scores[rate] = dict(zip(SIZES, of_rate[0].T, strict=True))
    return Result(findings(scores), picture(scores), {"accuracy (rate, size, seed)": scores})


def train(rates, splits, steps: int):
    """Test accuracy with a fixed rate, for (rate, seed, size)."""

    def one(rate, seed, split, size):
        key = jax.random.key(seed)
        # Finite for rate 0, so that the penalty on the weights is finite.
        logit = jnp.maximum(jnp.log(rate) - jnp.log1p(-rate), -20.0)

        def logits_of(layers, x, key):
            return learned_rates.net(layers, x, [rate] * 3, key=key, drop=dropout)

        def loss(layers, rows, key):
            logits = logits_of(layers, split.x_train[rows], key)
            penalty = learned_rates.penalty(layers, [logit] * 3, size)
            return nets.cross_entropy(logits, split.y_train[rows]) + penalty

        layers = nets.mlp_init(fold(key, "weights"), (64, 64, 64, 10))
        layers = nets.fit(loss, layers, size, key, steps=steps, batch_size=32)
        return nets.accuracy(logits_of(layers, split.x_test, None), split.y_test)

    def all_sizes(rate, seed, split):
        return jax.vmap(one, (None, None, None, 0))(rate, seed, split, jnp.array(SIZES))

    return nets.run_rates_and_seeds(all_sizes, rates, splits)


def findings(scores) -> list[Finding]:
    """Learned rates against each fixed one."""
    results = []
    for rate in FIXED:
        other = f"{rate} everywhere" if rate else "no dropout"
        text = f"Learned rates generalise better than {other}"
        what = f"Points of test accuracy above {other}, by examples"
        ours, theirs = scores["learned"], scores[rate]
        results.append(compare(text, GAL, ours, theirs, what, "the examples are"))
    return results


def picture(scores) -> Figure:
    """The gain of learned rates over each fixed rate, against the size of the data."""
    figure, [axes] = charts.panels(7)
    gains = {
        f"on {rate} everywhere" if rate else "on no dropout": [
            interval(100 * (scores["learned"][size] - scores[rate][size])) for size in SIZES
        ]
        for rate in FIXED
    }
    axes.axhline(0, color="0.6", linestyle=":")
    charts.lines(axes, np.arange(len(SIZES)), gains, spacing=0.08, xlabel="training examples")
    axes.set(ylabel="points of test accuracy that learned rates gain")
    axes.set(xticks=range(len(SIZES)), xticklabels=SIZES)
    return figure


if __name__ == "__main__":
    main(experiment, __doc__, __file__)
