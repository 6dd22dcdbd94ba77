"""Stochastic depth: rates over the depth of a residual net.

300 of sklearn's digits to train on, all others to test; a linear layer to 64 units, sixteen
residual blocks (layer norm, 64 units with ReLU, linear), layer norm and a readout. DropPath drops a
block's branch row by row. Adam at 1e-3, 400 steps of 32. The seed decides split, weights and masks;
differences are taken seed by seed.
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
from dropout_jax import drop_path, fold, linear_over_depth

DEPTH, WIDTH = 16, 64
PATTERNS = {
    "none": (0.0,) * DEPTH,
    "uniform 0.25": (0.25,) * DEPTH,
    "uniform 0.5": (0.5,) * DEPTH,
    "linear to 0.5": linear_over_depth(0.5, DEPTH),
}
HUANG = "Huang et al., Deep networks with stochastic depth, ECCV 2016"


def experiment(scale: Scale) -> Result:
    """Train with each pattern of rates."""
    seeds, steps = scale.pick(3, 6, 20), scale.pick(3, 400, 2000)
    splits = data.stack_splits(functools.partial(data.load_digits, 300), range(seeds))
    jobs = scale.track(PATTERNS.items(), "patterns of rates")
    scores = {name: train(rates, splits, steps, accuracy) for name, rates in jobs}
    return Result(findings(scores), picture(scores), {"accuracy": scores})


def train(rates, splits, steps: int, evaluate):
    """evaluate(params, split, key) of nets trained with these rates by block, for each seed."""

    def one(rates, seed, split):
        key = jax.random.key(seed)

        def loss(params, rows, key):
            logits = net(params, split.x_train[rows], rates, key=key)
            return nets.cross_entropy(logits, split.y_train[rows])

        params = nets.fit(loss, init(key), len(split.x_train), key, steps=steps, batch_size=32)
        return evaluate(params, split, key)

    return nets.run_rates_and_seeds(one, [rates], splits)[0]


def accuracy(params, split, key):
    """Accuracy on the test digits, with all blocks."""
    return nets.accuracy(net(params, split.x_test, jnp.zeros(DEPTH), key=None), split.y_test)


def init(key):
    """The layers of all blocks, stacked, and the layers before and after them."""
    blocks = jax.vmap(lambda key: nets.mlp_init(key, (WIDTH, WIDTH, WIDTH)))
    return {
        "in": nets.dense_init(fold(key, "in"), 64, WIDTH),
        "blocks": blocks(jax.random.split(fold(key, "blocks"), DEPTH)),
        "out": nets.dense_init(fold(key, "out"), WIDTH, 10),
    }


def net(params, x, rates, *, key):
    """Logits, with a rate for each block; `key=None` evaluates."""

    def block(x, inputs):
        i, rate, layers = inputs
        branch = nets.mlp(layers, jax.nn.standardize(x), 0.0, key=None)
        return x + drop_path(branch, rate, key=fold(key, "block", i)), None

    indices = jnp.arange(DEPTH, dtype=jnp.uint32)
    x = nets.dense(params["in"], x)
    x, _ = jax.lax.scan(block, x, (indices, rates, params["blocks"]))
    return nets.dense(params["out"], jax.nn.standardize(x))


def findings(scores) -> list[Finding]:
    """Each pattern against none; linear rates against uniform of the same last rate or mean."""
    none, linear = scores["none"], scores["linear to 0.5"]
    dropped = {name: each for name, each in scores.items() if name != "none"}
    uniform = {name: scores[name] for name in ("uniform 0.5", "uniform 0.25")}
    return [
        compare(
            "Stochastic depth makes a deep residual net generalise better",
            HUANG,
            dropped,
            dict.fromkeys(dropped, none),
            f"Test accuracy without it {interval(none):.1%}. Points above that",
            "the rates are",
        ),
        compare(
            "Rates that grow linearly with depth generalise better than uniform ones",
            HUANG,
            dict.fromkeys(uniform, linear),
            uniform,
            "Points of test accuracy, linear to 0.5 (mean 0.25) minus uniform",
            "compared with",
        ),
    ]


def picture(scores) -> Figure:
    """Accuracy gained by pattern of rates."""
    figure, [axes] = charts.panels(7, height=2.8)
    none = scores["none"]
    gains = {name: interval(100 * (scores[name] - none)) for name in PATTERNS if name != "none"}
    charts.forest(axes, gains, xlabel="points of test accuracy above no stochastic depth")
    axes.margins(y=0.3)
    return figure


if __name__ == "__main__":
    main(experiment, __doc__, __file__)
