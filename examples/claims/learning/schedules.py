"""Schedules: does a tuned constant rate win?

An MLP of four hidden layers of 64 units learns 500 MNIST digits of 14 x 14 pixels by 800 steps of
Adam (at 1e-3, batches of 32). Each schedule has one rate to tune, its highest: early dropout ends
and late dropout starts half way, decaying falls linearly to 0, the curriculum grows from 0 as in
its paper, and deeper-is-higher grows from 0 at the first hidden layer to the rate at the last. The
rate is chosen for each seed and schedule alone, by the accuracy on 1,500 digits for validation;
compared is that on 3,000 others. A seed decides the split, initial weights and batches. (A first
trial had rates of 0.1 to 0.6; most seeds chose 0.1 or 0.2, so the grid was made finer there.)
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data
from common.claim import Finding, Result, by_bounds, by_cell, interval, intervals
from common.nets import accuracy, cross_entropy, fit_and_evaluate, mlp_init, normed_mlp, run_grid
from dropout_jax import curriculum_dropout, early_dropout, fold, late_dropout, linear_over_depth

NAMES = ("constant", "decaying", "early", "late", "curriculum", "deeper")
LAYERS, RATES = 4, (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
BETTER = {  # than a constant rate, according to its authors
    "decaying": 'Rennie et al., "Annealed dropout training of deep networks", SLT 2014',
    "late": 'Liu et al., "Dropout reduces underfitting", ICML 2023',
    "curriculum": 'Morerio et al., "Curriculum dropout", ICCV 2017',
    "deeper": 'Huang et al., "Deep networks with stochastic depth", ECCV 2016, of whole layers',
}


def experiment(scale: claim.Scale) -> Result:
    steps, rates = scale.pick(60, 800, 2000), scale.pick((0.0, 0.5), RATES, RATES)
    bar = scale.track(range(scale.pick(3, 10, 20)), "seeds")
    validation, test = run_grid(make_run(rates, steps), bar, range(len(NAMES)), range(len(rates)))
    tuned = np.take_along_axis(test, validation.argmax(-1, keepdims=True), -1)[..., 0]
    gains = intervals(tuned[:, 1:] - tuned[:, :1], NAMES[1:])
    none = interval(tuned[:, 0] - test[:, 0, 0])
    numbers = {
        "rates": rates,
        "steps": steps,
        "test accuracy by rate": dict(zip(NAMES, test.mean(0), strict=True)),
        "over the tuned constant": gains,
    }
    return Result(findings(none, gains), picture({"constant, over none": none} | gains), numbers)


def make_run(rates, steps: int):
    """The run of a seed, a schedule and a rate: accuracy in the validation and in the test."""
    images, labels = data.load_all_mnist()
    images = data.downsample(images).reshape(len(images), -1)
    tables = jnp.array([list(make_schedules(rate, steps).values()) for rate in rates])

    def run(seed, schedule, rate):
        key = jax.random.key(seed)
        order = jax.random.permutation(fold(key, "images"), len(images))
        train, validation, test = jnp.split(order, (500, 2000))
        params = mlp_init(fold(key, "weights"), (196, *[64] * LAYERS, 10))

        def logits(params, rows, rates, key):
            return normed_mlp(params, images[rows], rates, key=key, norm=lambda x, *_: x)[0]

        def loss(params, rows, key, rates):
            return cross_entropy(logits(params, train[rows], rates, key), labels[train[rows]])

        options = {
            "steps": steps,
            "batch_size": 32,
            "evaluations": 1,
            "per_step": (tables[rate, schedule],),
        }
        params, _ = fit_and_evaluate(loss, params, 500, fold(key, "fit"), lambda _: None, **options)
        off = (jnp.zeros(LAYERS), None)
        return [accuracy(logits(params, rows, *off), labels[rows]) for rows in (validation, test)]

    return run


def make_schedules(rate: float, steps: int) -> dict[str, jax.Array]:
    """The rate of each step and hidden layer, by name in the order of NAMES."""
    by_step = {
        "constant": lambda step: jnp.full_like(step, rate, float),
        "decaying": optax.linear_schedule(rate, 0.0, steps),
        "early": early_dropout(rate, until=steps // 2),
        "late": late_dropout(rate, start=steps // 2),
        "curriculum": curriculum_dropout(rate, gamma=10 / steps),
    }
    step = jnp.arange(steps)
    tables = {name: jnp.tile(jax.vmap(of)(step)[:, None], LAYERS) for name, of in by_step.items()}
    return tables | {"deeper": jnp.tile(jnp.array(linear_over_depth(rate, LAYERS)), (steps, 1))}


def findings(none, gains) -> list[Finding]:
    """The gain of a constant rate, and of the others over the constant; all are tuned."""
    what, by = "test accuracy minus that of the tuned constant", "the rival is"
    better = "dropout does better than a constant rate"
    wins = "A tuned constant rate usually wins"
    none_is_better = "No schedule does better than a tuned constant rate"
    weaker, below = "the weaker form of the same advice", f"{what} (the claim: below half a point)"
    advice = "common advice; we know no paper that measures it"
    gained = f"it gains {none:+.2%} over no dropout; the others"
    return [
        *(
            by_cell(f"{name.capitalize()} {better}", source, what, {name: gains[name]}, by, "+.2%")
            for name, source in BETTER.items()
        ),
        by_cell(wins, advice, gained, gains, by, "+.2%", -1),
        by_bounds(none_is_better, weaker, below, gains, by, "+.2%", (None, claim.NEGLIGIBLE)),
    ]


def picture(gains) -> Figure:
    """The gain of a constant rate, and of each schedule over it; all are tuned."""
    figure, (axes,) = charts.panels(8)
    percent = {name: gain.percent() for name, gain in gains.items()}
    charts.forest(axes, percent, xlabel="test accuracy over the tuned constant, points")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
