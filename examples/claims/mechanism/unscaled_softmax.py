"""What a softmax does after dropout without its scale.

Digits of 8 x 8, 900 to train on and 897 to test; MLPs of 128 ReLU units a hidden layer with dropout
0.5 on each, Adam at 1e-3, 600 steps of 64, ten seeds. A seed decides the split, the weights, the
batches and the masks. The softmax of the same network on the test set is compared for the same
masks, with the scale and without. Networks without biases have biases of 0 throughout.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data, nets
from common.claim import Finding, Result, by_bounds, by_cell, interval
from dropout_jax import dropout, dropout_unscaled, fold

BIASES = {"without biases": 0.0, "with biases": 1.0}
LAYERS = {"1 hidden layer": 1, "3 hidden layers": 3}


def experiment(scale: claim.Scale) -> Result:
    seeds, steps = scale.pick((3, 30), (10, 600), (30, 1200))
    splits, results = data.stack_splits(data.load_digits, range(seeds)), {}
    for layers in scale.track(LAYERS, "softmax in training"):
        run = functools.partial(train_and_compare, hidden=LAYERS[layers], steps=steps)
        cells = zip(*nets.run_rates_and_seeds(run, [*BIASES.values()], splits), strict=True)
        results |= {f"{layers} {biases}": next(cells) for biases in BIASES}
    return Result(findings(results), picture(results), {"softmax": results})


def train_and_compare(bias, seed, split, *, hidden, steps):
    """Entropy with the scale and without it; share of the same argmax."""

    def scale_biases(params):
        return [{**layer, "bias": layer["bias"] * bias} for layer in params]

    def loss(params, rows, key):
        logits = nets.mlp(scale_biases(params), split.x_train[rows], 0.5, key=key)
        return nets.cross_entropy(logits, split.y_train[rows])

    key = jax.random.key(seed)
    params = nets.mlp_init(fold(key, "weights"), (64, *[128] * hidden, 10))
    params = nets.fit(loss, params, len(split.y_train), fold(key, "fit"), steps=steps)
    scaled, unscaled = (
        nets.mlp(scale_biases(params), split.x_test, 0.5, key=fold(key, "test"), drop=drop)
        for drop in (dropout, dropout_unscaled)
    )
    return entropy(scaled), entropy(unscaled), (scaled.argmax(-1) == unscaled.argmax(-1)).mean()


def entropy(logits):
    """The mean entropy of the softmax over the rows, in nats."""
    log = jax.nn.log_softmax(logits)
    return -(jnp.exp(log) * log).sum(-1).mean()


def findings(results) -> list[Finding]:
    rises = {name: interval(unscaled - scaled) for name, (scaled, unscaled, _) in results.items()}
    same = {name: interval(agree).percent() for name, (*_, agree) in results.items()}
    return [
        by_cell(
            "Without the scale a softmax downstream is less sure: its entropy rises",
            "follows from the formula: smaller logits are a higher temperature",
            "rise in nats, same masks at rate 0.5",
            rises,
            "the network has",
        ),
        by_bounds(
            "Without the scale the softmax's argmax does not change",
            "follows from the formula where logits are only made smaller",
            "% of predictions that do not change (the claim: above 99.9)",
            same,
            "the network has",
            ".2f",
            (99.9, None),
        ),
    ]


def picture(results):
    figure, (left, right) = charts.panels(6, 6)
    short = {name.replace(" with", "\nwith"): cell for name, cell in results.items()}
    entropies = {
        name: {"with the scale": interval(scaled), "without it": interval(unscaled)}
        for name, (scaled, unscaled, _) in short.items()
    }
    changed = {name: {"": interval(1 - agree).percent()} for name, (*_, agree) in short.items()}
    charts.bars(left, entropies, ylabel="entropy of the softmax (nats)")
    charts.bars(right, changed, ylabel="% of answers that change without the scale")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
