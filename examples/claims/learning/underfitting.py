"""Underfitting: does dropout in the first steps alone help a model that is too small?

An MLP of three hidden layers of 16 units learns 4,000 MNIST digits of 14 x 14 pixels by 400 steps
of Adam (at 1e-3, batches of 64), six passes: it underfits. Dropout is on all hidden layers: early
dropout in the first sixth of the steps, as in its paper (50 of 300 epochs), constant dropout in all
steps. The training loss is that of all 4,000 after the last step, dropout off; the accuracy is that
of 1,000 other digits. Nothing is chosen. A seed decides the split, initial weights and batches.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data
from common.claim import Finding, Result, by_cell, intervals
from common.nets import accuracy, cross_entropy, fit_and_evaluate, mlp, mlp_init, run_grid
from dropout_jax import early_dropout, fold

LIU = 'Liu et al., "Dropout reduces underfitting", ICML 2023'
WHEN = ("early", "constant")


def experiment(scale: claim.Scale) -> Result:
    steps, seeds = scale.pick(24, 400, 2000), range(scale.pick(3, 20, 50))
    bar, rates = scale.track(seeds, "seeds"), scale.pick((0.2,), (0.1, 0.2, 0.3), (0.1, 0.2, 0.3))
    # By seed, whether early or constant, and rate, the first of which is 0.
    loss, right = run_grid(make_run((0.0, *rates), steps), bar, (0, 1), range(1 + len(rates)))
    changes = {
        f"{when}, {what}": intervals(values[:, i, 1:] - values[:, i, :1], rates)
        for what, values in {"training loss": loss, "test accuracy": right}.items()
        for i, when in enumerate(WHEN)
    }
    return Result(findings(changes), picture(changes), {"steps": steps, "over no dropout": changes})


def make_run(rates, steps: int):
    """The run of a seed, early or constant, and a rate: last training loss and test accuracy."""
    images, labels = data.load_all_mnist()
    images, step = data.downsample(images).reshape(len(images), -1), jnp.arange(steps)
    tables = jnp.array(
        [
            [jax.vmap(early_dropout(rate, until))(step) for rate in rates]
            for until in (max(steps // 6, 1), steps)
        ]
    )

    def run(seed, when, rate):
        key = jax.random.key(seed)
        train, test = jnp.split(jax.random.permutation(fold(key, "images"), len(images)), [4000])
        params = mlp_init(fold(key, "weights"), (196, 16, 16, 16, 10))

        def loss(params, rows, key, rate):
            logits = mlp(params, images[train[rows]], rate, key=key)
            return cross_entropy(logits, labels[train[rows]])

        options = {"evaluations": 1, "steps": steps, "per_step": (tables[when, rate],)}
        fitting = fold(key, "fit")
        params, _ = fit_and_evaluate(loss, params, 4000, fitting, lambda _: None, **options)
        right = accuracy(mlp(params, images[test], 0.0, key=None), labels[test])
        return loss(params, jnp.arange(4000), None, 0.0), right

    return run


def findings(changes) -> list[Finding]:
    """Of the changes over no dropout, by rate."""

    def finding(when: str, verb: str, what: str, spec: str, sign: int) -> Finding:
        text = f"{when.capitalize()} dropout {verb} the {what} of a model that underfits"
        name = f"{when}, {what}"
        return by_cell(
            text, LIU, f"{name}, change by rate", changes[name], "the rate is", spec, sign
        )

    return [
        finding("early", "lowers", "training loss", "+.4f", -1),
        finding("early", "raises", "test accuracy", "+.2%", 1),
        finding("constant", "raises", "training loss", "+.4f", 1),
    ]


def picture(changes) -> Figure:
    """The change of training loss and of test accuracy, by rate."""
    figure, panels = charts.panels(5, 5, height=4)
    for axes, what in zip(panels, ("training loss, nats", "test accuracy, points"), strict=True):
        name, unit = what.split(", ")
        cells = {when: changes[f"{when}, {name}"] for when in WHEN}
        series = {
            when: [cell.percent() if unit == "points" else cell for cell in each.values()]
            for when, each in cells.items()
        }
        labels = {"xlabel": "rate", "ylabel": f"change over no dropout, {unit}", "title": name}
        rates = list(cells["early"])
        charts.lines(axes, rates, series, spacing=0.004, xticks=rates, **labels)
        axes.axhline(0, color="black", linewidth=0.8)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
