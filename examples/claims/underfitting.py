"""Underfitting: does dropout in the first steps alone help a model that is too small?

An MLP of three hidden layers of 16 units learns 4,000 MNIST digits of 14 x 14 pixels by 400 steps
of Adam (at 1e-3, batches of 64), six passes: it underfits. Early dropout is on in the first sixth
of the steps, as in its paper (50 of 300 epochs), constant dropout in all, on all hidden layers. The
training loss is that of all 4,000, dropout off, after the last step; the accuracy is that of 1,000
other digits. Nothing is chosen. A seed decides the split, initial weights and batches.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from common import claim, data
from common.claim import Finding, Result, interval, verdict_by
from common.nets import accuracy, cross_entropy, fit_looking, grid, mlp, mlp_init
from dropout_jax import early_dropout, fold

LIU = 'Liu et al., "Dropout reduces underfitting", ICML 2023'
RATES = (0.1, 0.2, 0.3)
EARLY, CONSTANT = range(2)


def experiment(scale: claim.Scale) -> Result:
    steps, seeds = scale.pick(24, 400, 2000), range(scale.pick(3, 20, 50))
    bar, rates = scale.track(seeds, "seeds"), (0.0, *scale.pick(RATES[1:2], RATES, RATES))
    # By seed, whether early or constant, and rate; then minus that of the seed without dropout.
    loss, right = (
        found[:, :, 1:] - found[:, :, :1]
        for found in grid(run_of(rates, steps), bar, (0, 1), range(len(rates)))
    )
    found = {
        name: {rate: interval(values[:, which, i]) for i, rate in enumerate(rates[1:])}
        for name, values, which in (
            ("early, training loss", loss, EARLY),
            ("early, test accuracy", right, EARLY),
            ("constant, training loss", loss, CONSTANT),
            ("constant, test accuracy", right, CONSTANT),
        )
    }
    findings = [
        finding(
            "Early dropout lowers the training loss of a model that underfits",
            found,
            "early, training loss",
            -1,
        ),
        finding(
            "Early dropout raises the test accuracy of a model that underfits",
            found,
            "early, test accuracy",
            1,
        ),
        finding(
            "Constant dropout raises the training loss of a model that underfits",
            found,
            "constant, training loss",
            1,
        ),
    ]
    return Result(findings, picture(found), {"steps": steps, "over no dropout": found})


def finding(text: str, found, name: str, sign: int) -> Finding:
    """A claim that a change, over no dropout, has a sign, by rate."""
    style = "+.2%" if "accuracy" in name else "+.4f"
    told = "; ".join(f"{rate}: {change:{style}}" for rate, change in found[name].items())
    held = {
        rate: change.positive if sign > 0 else change.negative
        for rate, change in found[name].items()
    }
    return Finding(text, LIU, f"{name}, change by rate: {told}", verdict_by("the rate is", held))


def run_of(rates, steps: int):
    """The run of a seed, early or constant, and a rate: last training loss and test accuracy."""
    images, labels = data.all_mnist()
    images, step = data.halved(images).reshape(len(images), -1), jnp.arange(steps)
    tables = jnp.array(
        [
            [jax.vmap(early_dropout(rate, until))(step) for rate in rates]
            for until in (max(steps // 6, 1), steps)
        ]
    )

    def run(seed, which, rate):
        key = jax.random.key(seed)
        train, test = jnp.split(jax.random.permutation(fold(key, "images"), len(images)), [4000])
        params = mlp_init(fold(key, "weights"), (196, 16, 16, 16, 10))

        def logits(params, rows, rate, key):
            return mlp(params, images[rows], rate, key=key)

        def loss(params, rows, key, rate):
            return cross_entropy(logits(params, train[rows], rate, key), labels[train[rows]])

        more = {"looks": 1, "steps": steps, "per_step": (tables[which, rate],)}
        fitting = fold(key, "fit")
        params, _ = fit_looking(loss, params, 4000, fitting, lambda _: None, **more)
        last = loss(params, jnp.arange(4000), None, 0.0)
        return last, accuracy(logits(params, test, 0.0, None), labels[test])

    return run


def picture(found) -> Figure:
    """The change of training loss and of test accuracy, by rate."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("training loss", "test accuracy"), strict=True):
        unit, factor = ("points", 100) if "accuracy" in what else ("nats", 1)
        for i, when in enumerate(("early", "constant")):
            cells = factor * np.array(list(found[f"{when}, {what}"].values()))
            mean, low, high = cells.T
            rates = np.array(list(found[f"{when}, {what}"])) + 0.004 * i
            axes.errorbar(
                rates, mean, yerr=[mean - low, high - mean], fmt="o-", capsize=4, label=when
            )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel="rate", ylabel=f"change over no dropout, {unit}", title=what)
        axes.legend()
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
