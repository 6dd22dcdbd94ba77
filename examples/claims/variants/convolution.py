"""Elementwise, spatial and block dropout in a small convolutional net.

200 of sklearn's digits of 8 x 8 to train on, all others to test; two convolutions of 3 x 3 (16 and
32 channels), each with ReLU and dropout, a 2 x 2 maximum between them, and a linear readout.
DropBlock's blocks are 3 x 3. Adam at 1e-3, 400 steps of 32. The seed decides split, weights and
masks; differences are taken seed by seed at the same rate.
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
from dropout_jax import drop_block, dropout, fold, spatial_dropout

RATES = (0.1, 0.25, 0.5)
KINDS = {
    "elementwise": dropout,
    "spatial": spatial_dropout,
    "DropBlock": lambda x, rate, *, key: drop_block(x, rate, 3, key=key),
}
TOMPSON = "Tompson et al., Efficient object localization using convolutional networks, CVPR 2015"
SRIVASTAVA = "Srivastava et al., Dropout, JMLR 2014, section 6.1"
GHIASI = "Ghiasi, Lin and Le, DropBlock, NeurIPS 2018"
# Claims that the first kind is better than the second, and their source.
BETTER = (
    ("elementwise", "no dropout", SRIVASTAVA),
    ("spatial", "elementwise", TOMPSON),
    ("DropBlock", "elementwise", GHIASI),
    ("DropBlock", "spatial", GHIASI),
)


def experiment(scale: Scale) -> Result:
    """Train with each kind at each rate, and without."""
    seeds, steps = scale.pick(3, 6, 20), scale.pick(3, 400, 1500)
    splits = data.stack_splits(functools.partial(data.load_digits, 200), range(seeds))
    scores = {}
    for kind in scale.track(KINDS, "kinds of dropout"):
        rates = (0.0, *RATES) if kind == "elementwise" else RATES
        accuracies = train(KINDS[kind], rates, splits, steps)[1]
        scores[kind] = dict(zip(rates, accuracies, strict=True))
    scores["no dropout"] = dict.fromkeys(RATES, scores["elementwise"].pop(0.0))
    return Result(findings(scores), picture(scores), {"accuracy (rate, seed)": scores})


def train(drop, rates, splits, steps: int):
    """Parameters and the test accuracy with dropout off, for (rate, seed)."""

    def one(rate, seed, split):
        key = jax.random.key(seed)

        def loss(params, rows, key):
            logits = net(params, split.x_train[rows], rate, key=key, drop=drop)[0]
            return nets.cross_entropy(logits, split.y_train[rows])

        params = nets.fit(loss, init(key), len(split.x_train), key, steps=steps, batch_size=32)
        logits = net(params, split.x_test, rate, key=None, drop=drop)[0]
        return params, nets.accuracy(logits, split.y_test)

    return nets.run_rates_and_seeds(one, rates, splits)


def net(params, x, rate, *, key, drop):
    """Logits, and the first layer's maps (batch, 8, 8, channel) before dropout."""
    maps = jax.nn.relu(convolve(params["first"], x.reshape(-1, 8, 8, 1)))
    x = drop(maps, rate, key=fold(key, "first"))
    x = x.reshape(-1, 4, 2, 4, 2, 16).max((2, 4))
    x = drop(jax.nn.relu(convolve(params["second"], x)), rate, key=fold(key, "second"))
    return nets.dense(params["readout"], x.reshape(len(x), -1)), maps


def init(key):
    """Two convolutions, as dense layers of nine neighbours' channels, and the readout."""
    sizes = {"first": (9, 16), "second": (9 * 16, 32), "readout": (4 * 4 * 32, 10)}
    return {name: nets.dense_init(fold(key, name), *pair) for name, pair in sizes.items()}


def convolve(layer, x):
    """A 3 x 3 convolution as a matrix product, so that vmap over nets is one product, too."""
    _, rows, columns, _ = x.shape
    x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    shifted = [x[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return nets.dense(layer, jnp.concatenate(shifted, -1))


def findings(scores) -> list[Finding]:
    """One kind against another, paired by seed at the same rate."""
    results = []
    for kind, other, source in BETTER:
        name = kind if kind == "DropBlock" else f"{kind} dropout"
        text = f"In convolutional layers {name} generalises better than {other}"
        what = f"Points of test accuracy above {other}, by rate"
        results.append(compare(text, source, scores[kind], scores[other], what, "the rate is"))
    return results


def picture(scores) -> Figure:
    """The gain of training with each kind."""
    figure, [axes] = charts.panels(7)
    gains = {
        kind: [interval(100 * (scores[kind][rate] - scores["no dropout"][rate])) for rate in RATES]
        for kind in KINDS
    }
    axes.axhline(0, color="0.6", linestyle=":")
    charts.lines(axes, RATES, gains, spacing=0.006, xlabel="dropout rate in training", xticks=RATES)
    axes.set(ylabel="points of test accuracy above no dropout")
    return figure


if __name__ == "__main__":
    main(experiment, __doc__, __file__)
