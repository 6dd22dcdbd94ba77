"""What elementwise, spatial and block dropout remove from a convolutional net's maps.

The digits, the net and its training are those of convolution.py, without dropout. At test time each
kind is switched on at rate 0.5, and the loss of accuracy measures what the kind removes. The
correlation is that of neighbouring pixels in a row of the first layer's maps (after ReLU) for the
test digits, averaged over the channels in use. The seed decides split, weights and masks.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, data, nets
from common.claim import Finding, Result, Scale, by_cell, interval, main
from convolution import KINDS, TOMPSON, net, train
from dropout_jax import dropout

RATE = 0.5


def experiment(scale: Scale) -> Result:
    """Train without dropout, and test with each kind."""
    seeds, steps = scale.pick(3, 6, 20), scale.pick(3, 400, 1500)
    splits = data.stack_splits(functools.partial(data.load_digits, 200), range(seeds))
    params = jax.tree.map(lambda leaf: leaf[0], train(dropout, (0.0,), splits, steps)[0])
    lost, correlation = switch_on(params, splits)
    numbers = {"accuracy lost": lost, "neighbours": correlation}
    return Result(findings(lost, correlation), picture(lost), numbers)


@jax.jit
@jax.vmap
def switch_on(params, split):
    """The accuracy that a net loses with each kind, and the correlation in its maps."""
    logits, maps = net(params, split.x_test, RATE, key=None, drop=dropout)
    right = nets.accuracy(logits, split.y_test)
    lost = {}
    for kind, drop in KINDS.items():
        noisy = net(params, split.x_test, RATE, key=jax.random.key(0), drop=drop)[0]
        lost[kind] = right - nets.accuracy(noisy, split.y_test)
    return lost, neighbour_correlation(maps)


def neighbour_correlation(maps):
    """The mean correlation of neighbouring pixels in a row, over the channels in use."""
    pair = [part.reshape(-1, 16) for part in (maps[:, :, :-1], maps[:, :, 1:])]
    left, right = (part - part.mean(0) for part in pair)
    scale = jnp.sqrt((left**2).mean(0) * (right**2).mean(0))
    used = scale > 1e-6
    return jnp.where(used, (left * right).mean(0) / scale.clip(1e-6), 0).sum() / used.sum()


def findings(lost, correlation) -> list[Finding]:
    """Whether elementwise dropout removes less than the kinds that drop neighbours together."""
    others = ("spatial", "DropBlock")
    more = {kind: interval(100 * (lost[kind] - lost["elementwise"])) for kind in others}
    return [
        by_cell(
            "Neighbours in a feature map are correlated, so elementwise dropout removes less of it "
            "than spatial dropout or DropBlock",
            TOMPSON,
            f"Neighbours correlate by {interval(correlation):.2f}. Points of test accuracy lost "
            f"beyond those of elementwise, switched on at {RATE}",
            more,
            "compared with",
            "+.1f",
        )
    ]


def picture(lost) -> Figure:
    """The accuracy that a net trained without dropout loses with each kind."""
    figure, [axes] = charts.panels(6)
    points = {kind: {"": interval(100 * lost[kind])} for kind in KINDS}
    charts.bars(axes, points, ylabel="points of test accuracy lost")
    axes.set(title=f"trained without dropout, switched on at {RATE}")
    return figure


if __name__ == "__main__":
    main(experiment, __doc__, __file__)
