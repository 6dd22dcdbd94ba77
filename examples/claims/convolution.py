"""Elementwise, spatial and block dropout in a small convolutional net.

200 of sklearn's digits of 8 x 8 to train on, all others to test; two convolutions of 3 x 3 (16 and
32 channels), each with ReLU and dropout, a 2 x 2 maximum between them, and a linear readout.
DropBlock's blocks are 3 x 3. Adam at 1e-3, 400 steps of 32. The seed decides split, weights and
masks; differences are taken seed by seed at the same rate.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from common import charts, claim, data, nets
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


def init(key):
    """Two convolutions, as dense layers of nine neighbours' channels, and the readout."""
    sizes = {"first": (9, 16), "second": (9 * 16, 32), "readout": (4 * 4 * 32, 10)}
    return {name: nets.dense_init(fold(key, name), *pair) for name, pair in sizes.items()}


def convolution(layer, x):
    """A 3 x 3 convolution as a matrix product, so that vmap over nets is one product, too."""
    _, rows, columns, _ = x.shape
    x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    shifted = [x[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return nets.dense(layer, jnp.concatenate(shifted, -1))


def net(params, x, rate, *, key, drop):
    """Logits, and the first layer's maps (batch, 8, 8, channel) before dropout."""
    maps = jax.nn.relu(convolution(params["first"], x.reshape(-1, 8, 8, 1)))
    x = drop(maps, rate, key=fold(key, "first"))
    x = x.reshape(-1, 4, 2, 4, 2, 16).max((2, 4))
    x = drop(jax.nn.relu(convolution(params["second"], x)), rate, key=fold(key, "second"))
    return nets.dense(params["readout"], x.reshape(len(x), -1)), maps


def neighbours(maps):
    """The mean correlation, over the channels in use, of places side by side in a row."""
    pair = [part.reshape(-1, 16) for part in (maps[:, :, :-1], maps[:, :, 1:])]
    left, right = (part - part.mean(0) for part in pair)
    scale = jnp.sqrt((left**2).mean(0) * (right**2).mean(0))
    used = scale > 1e-6
    return jnp.where(used, (left * right).mean(0) / scale.clip(1e-6), 0).sum() / used.sum()


def train(drop, rates, splits, steps: int):
    """Parameters and the test accuracy with dropout off, for (rate, seed)."""

    def one(rate, seed, split):
        key = jax.random.key(seed)

        def loss(params, rows, key):
            logits = net(params, split.x_train[rows], rate, key=key, drop=drop)[0]
            return nets.cross_entropy(logits, split.y_train[rows])

        params = nets.fit(loss, init(key), len(split.x_train), key, steps=steps, batch_size=32)
        return params, nets.accuracy(
            net(params, split.x_test, rate, key=None, drop=drop)[0], split.y_test
        )

    return nets.over_rates_and_seeds(one, rates, splits)


@jax.jit
@jax.vmap
def switched_on(params, split):
    """What a net trained without dropout loses when each kind is on at 0.5; its neighbours."""
    logits, maps = net(params, split.x_test, 0.5, key=None, drop=dropout)
    noisy = {
        kind: net(params, split.x_test, 0.5, key=jax.random.key(0), drop=drop)[0]
        for kind, drop in KINDS.items()
    }
    right = nets.accuracy(logits, split.y_test)
    lost = {kind: right - nets.accuracy(logits, split.y_test) for kind, logits in noisy.items()}
    return lost, neighbours(maps)


def experiment(scale: claim.Scale) -> claim.Result:
    """Train with each kind at each rate, and without."""
    seeds, steps = scale.pick(3, 6, 20), scale.pick(3, 400, 1500)
    splits = data.stacked(functools.partial(data.digits, 200), range(seeds))
    params, accuracy = train(dropout, (0.0, *RATES), splits, steps)
    scores = {"no dropout": accuracy[:1].repeat(len(RATES), 0), "elementwise": accuracy[1:]}
    lost, correlation = switched_on(jax.tree.map(lambda x: x[0], params), splits)
    for kind in scale.track(("spatial", "DropBlock"), "kinds of dropout"):
        scores[kind] = train(KINDS[kind], RATES, splits, steps)[1]
    findings = [
        little(lost, correlation),
        better("elementwise", "no dropout", scores, SRIVASTAVA),
        better("spatial", "elementwise", scores, TOMPSON),
        better("DropBlock", "elementwise", scores, GHIASI),
        better("DropBlock", "spatial", scores, GHIASI),
    ]
    numbers = {"rates": RATES, "accuracy": scores, "lost": lost, "neighbours": correlation}
    return claim.Result(findings, picture(scores, lost), numbers)


def little(lost, correlation) -> claim.Finding:
    """Whether elementwise dropout takes less away than the kinds that take neighbours with it."""
    points = {kind: claim.interval(100 * x) for kind, x in lost.items()}
    less = {kind: claim.interval(lost[kind] - lost["elementwise"]) for kind in KINDS}
    del less["elementwise"]
    return claim.Finding(
        "Neighbours in a feature map are correlated, so elementwise dropout removes less of it "
        "than spatial dropout or DropBlock.",
        TOMPSON,
        f"Neighbours in the first layer's maps correlate by {claim.interval(correlation):.2f}. A "
        "net trained without dropout, with dropout of rate 0.5 switched on, loses points of test "
        f"accuracy: {claim.listed(points, '.1f')}.",
        claim.verdict_by("compared with", {kind: gap.positive for kind, gap in less.items()}),
    )


def better(kind: str, other: str, scores, source: str) -> claim.Finding:
    """One kind against another, seed by seed at the same rate."""
    ours, theirs = (dict(zip(RATES, scores[name], strict=True)) for name in (kind, other))
    name = kind if kind == "DropBlock" else f"{kind} dropout"
    return claim.compare(
        f"In convolutional layers {name} generalises better than {other}.",
        source,
        ours,
        theirs,
        f"Points of test accuracy above {other}, by rate",
        "the rate is",
    )


def picture(scores, lost) -> Figure:
    """What each kind takes from a net that does not know it, and what training with it gives."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, kind in enumerate(KINDS):
        charts.points(left, [kind], [claim.interval(100 * lost[kind])], kind, color=f"C{i}")
        gains = 100 * (scores[kind] - scores["no dropout"])
        charts.points(right, np.array(RATES) + 0.006 * (i - 1), map(claim.interval, gains), kind)
    left.set(ylabel="points of test accuracy lost", title="trained without, switched on at 0.5")
    left.set(xlim=(-0.5, 2.5), ylim=(0, None))
    right.axhline(0, color="0.6", linestyle=":")
    right.set(ylabel="points of test accuracy gained", title="trained with it")
    right.set(xlabel="dropout rate in training", xticks=RATES)
    right.legend()
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
