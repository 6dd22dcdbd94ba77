"""What a softmax does after dropout without its scale.

Digits of 8 x 8, 900 to train on and 897 to test; MLPs of 128 ReLU units a hidden layer with dropout
0.5 on each, Adam at 1e-3, 600 steps of 64, ten seeds. A seed decides the split, the weights, the
batches and the masks. The softmax of one and the same network on the test set is looked at with
the same masks, with the scale and without. Networks without biases hold them at 0 throughout.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data, nets
from common.claim import Finding, Result, by_cell, interval, listed, verdict_by
from dropout_jax import dropout, dropout_unscaled, fold

BIASES = {"without biases": 0.0, "with biases": 1.0}
LAYERS = {"1 hidden layer": 1, "3 hidden layers": 3}


def experiment(scale: claim.Scale) -> Result:
    seeds, steps = scale.pick((3, 30), (10, 600), (30, 1200))
    splits, found = data.stacked(data.digits, range(seeds)), {}
    for layers in scale.track(LAYERS, "softmax in training"):
        run = functools.partial(softmax, hidden=LAYERS[layers], steps=steps)
        cells = zip(*nets.over_rates_and_seeds(run, [*BIASES.values()], splits), strict=True)
        found |= {f"{layers} {biases}": next(cells) for biases in BIASES}
    return Result(findings(found), picture(found), {"softmax": found})


def softmax(bias, seed, split, *, hidden, steps):
    """Entropy with the scale and without it; share of the same argmax."""

    def held(params):
        return [{**layer, "bias": layer["bias"] * bias} for layer in params]

    def loss(params, rows, key):
        logits = nets.mlp(held(params), split.x_train[rows], 0.5, key=key)
        return nets.cross_entropy(logits, split.y_train[rows])

    key = jax.random.key(seed)
    params = nets.mlp_init(fold(key, "weights"), (64, *[128] * hidden, 10))
    params = nets.fit(loss, params, len(split.y_train), fold(key, "fit"), steps=steps)
    scaled, bare = (
        nets.mlp(held(params), split.x_test, 0.5, key=fold(key, "test"), drop=drop)
        for drop in (dropout, dropout_unscaled)
    )
    return entropy(scaled), entropy(bare), (scaled.argmax(-1) == bare.argmax(-1)).mean()


def entropy(logits):
    """Its mean over the rows, in nats."""
    log = jax.nn.log_softmax(logits)
    return -(jnp.exp(log) * log).sum(-1).mean()


def findings(found) -> list[Finding]:
    rises = {name: interval(bare - scaled) for name, (scaled, bare, _) in found.items()}
    same = {name: interval(agree).percent() for name, (*_, agree) in found.items()}
    return [
        by_cell(
            "Without the scale a softmax downstream is less sure: its entropy rises",
            "follows from the formula: smaller logits are a higher temperature",
            "rise in nats, same masks at rate 0.5",
            rises,
            "the network has",
        ),
        Finding(
            "Without the scale the softmax's argmax stays",
            "follows from the formula where logits are only made smaller",
            f"% of answers that stay (the claim: above 99.9): {listed(same, '.2f')}",
            verdict_by("the network has", {name: cell.low > 99.9 for name, cell in same.items()}),
        ),
    ]


def picture(found):
    figure, (left, right) = charts.panels(6, 6)
    short = {name.replace(" with", "\nwith"): cell for name, cell in found.items()}
    entropies = {
        name: {"with the scale": interval(scaled), "without it": interval(bare)}
        for name, (scaled, bare, _) in short.items()
    }
    changed = {name: {"": interval(1 - agree).percent()} for name, (*_, agree) in short.items()}
    charts.bars(left, entropies, ylabel="entropy of the softmax (nats)")
    charts.bars(right, changed, ylabel="% of answers that change without the scale")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
