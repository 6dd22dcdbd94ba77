"""Schedules: does a tuned constant rate win?

An MLP of four hidden layers of 64 units learns 500 MNIST digits of 14 x 14 pixels by 800 steps of
Adam (at 1e-3, batches of 32). Each schedule has one rate to tune, its highest: early dropout ends
and late dropout starts half way, decaying falls linearly to 0, the curriculum grows from 0 as in
its paper, and deeper-is-higher grows from 0 at the first hidden layer to the rate at the last. The
rate, 0.05 to 0.5 or none, is the one with the best accuracy on 1,500 digits for validation, chosen
for each seed and schedule alone; what is compared is the accuracy on 3,000 others, the test, which
choose nothing. A seed decides the split, initial weights and batches. (A first trial had rates of
0.1 to 0.6; most seeds chose 0.1 or 0.2, so the grid was made finer there.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from common import claim, data
from common.claim import Finding, Result, interval, verdict, verdict_by
from common.nets import accuracy, cross_entropy, dense, fit_looking, grid, mlp_init
from dropout_jax import (
    curriculum_dropout,
    dropout,
    early_dropout,
    fold,
    late_dropout,
    linear_over_depth,
)

LAYERS = 4
NAMES = ("constant", "decaying", "early", "late", "curriculum", "deeper")
RATES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
LIU = 'Liu et al., "Dropout reduces underfitting", ICML 2023'
BETTER = {  # than a constant rate, say its authors
    "decaying": 'Rennie et al., "Annealed dropout training of deep networks", SLT 2014',
    "late": LIU,
    "curriculum": 'Morerio et al., "Curriculum dropout", ICCV 2017',
    "deeper": 'Huang et al., "Deep networks with stochastic depth", ECCV 2016, of whole layers',
}


def experiment(scale: claim.Scale) -> Result:
    steps, rates = scale.pick(60, 800, 2000), scale.pick((0.0, 0.5), RATES, RATES)
    seeds = range(scale.pick(3, 10, 20))
    tables = {name: [] for name in NAMES}
    for rate in rates:
        for name, table in schedules(rate, steps).items():
            tables[name].append(table)
    run = runs(jnp.stack([jnp.stack(tables[name]) for name in NAMES]), steps)
    bar = scale.track(seeds, "seeds")
    validation, test = grid(run, bar, range(len(NAMES)), range(len(rates)))
    chosen = validation.argmax(-1)  # for each seed and schedule
    tuned = dict(zip(NAMES, np.take_along_axis(test, chosen[..., None], -1)[..., 0].T, strict=True))
    gains = {name: interval(tuned[name] - tuned["constant"]) for name in NAMES[1:]}
    none = interval(tuned["constant"] - test[:, 0, 0])
    findings = [
        Finding(
            f"{name.capitalize()} dropout does better than a constant rate",
            source,
            f"test accuracy over that of the tuned constant: {gains[name]:+.2%}",
            verdict(gains[name].positive),
        )
        for name, source in BETTER.items()
    ]
    told = "; ".join(f"{name} {gain:+.2%}" for name, gain in gains.items())
    findings += [
        Finding(
            "A tuned constant rate usually wins",
            "common advice; we know no paper that measures it",
            f"a tuned constant gains {none:+.2%} of test accuracy; over it have: {told}",
            verdict_by("the rival is", {name: gain.negative for name, gain in gains.items()}),
        ),
        Finding(
            "No schedule does better than a tuned constant rate",
            "the weaker form of the same advice",
            f"the claim is that of all {len(gains)} the interval is below half a point: {told}",
            verdict_by(
                "the rival is", {n: gain.high < claim.NEGLIGIBLE for n, gain in gains.items()}
            ),
        ),
    ]
    numbers = {
        "rates": rates,
        "steps": steps,
        "test accuracy by rate": dict(zip(NAMES, test.mean(0), strict=True)),
        "rates chosen": dict(zip(NAMES, np.array(rates)[chosen].T, strict=True)),
        "test accuracy at the chosen rates": {n: interval(found) for n, found in tuned.items()},
        "over the tuned constant": gains,
    }
    return Result(findings, picture(rates, steps, test, gains), numbers)


def runs(tables, steps: int):
    """The run of a seed, a schedule and a rate: accuracy in the validation and in the test."""
    images, labels = data.all_mnist()
    images = data.halved(images).reshape(len(images), -1)

    def run(seed, schedule, rate):
        key = jax.random.key(seed)
        order = jax.random.permutation(fold(key, "images"), len(images))
        train, validation, test = jnp.split(order, (500, 2000))
        params = mlp_init(fold(key, "weights"), (196, *[64] * LAYERS, 10))

        def loss(params, rows, key, rates):
            rows = train[rows]
            return cross_entropy(mlp(params, images[rows], rates, key=key), labels[rows])

        params, _ = fit_looking(
            *(loss, params, len(train), fold(key, "fit"), lambda _: None),
            **{"looks": 1, "steps": steps, "per_step": (tables[schedule, rate],), "batch_size": 32},
        )

        def right(rows):
            return accuracy(mlp(params, images[rows], jnp.zeros(LAYERS), key=None), labels[rows])

        return right(validation), right(test)

    return run


def schedules(rate: float, steps: int) -> dict[str, jax.Array]:
    """By name: the rate of each step and hidden layer."""
    over_steps = {
        "constant": lambda step: jnp.full_like(step, rate, float),
        "decaying": optax.linear_schedule(rate, 0.0, steps),
        "early": early_dropout(rate, until=steps // 2),
        "late": late_dropout(rate, start=steps // 2),
        "curriculum": curriculum_dropout(rate, gamma=10 / steps),
    }
    step = jnp.arange(steps)
    tables = {
        name: jnp.tile(jax.vmap(of_step)(step)[:, None], LAYERS)
        for name, of_step in over_steps.items()
    }
    deeper = jnp.tile(jnp.asarray(linear_over_depth(rate, LAYERS)), (steps, 1))
    return tables | {"deeper": deeper}


def mlp(layers, x, rates, *, key):
    """Logits, with a rate for each hidden layer."""
    for i, layer in enumerate(layers[:-1]):
        x = dropout(jax.nn.relu(dense(layer, x)), rates[i], key=fold(key, "hidden", i))
    return dense(layers[-1], x)


def picture(rates, steps, test, gains) -> Figure:
    """The schedules, the test accuracy by rate, and what each gains over the tuned constant."""
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for i, (name, table) in enumerate(schedules(0.5, steps).items()):
        wide = {"linewidth": 4, "alpha": 0.4} if name == "constant" else {}
        if name == "deeper":
            left.hlines(table[0], 0, steps, "C5", linestyle=":", label="deeper (4 layers)")
        else:
            left.plot(table[:, 0], f"C{i}", label=name, **wide)
        middle.plot(rates, 100 * test[:, i].mean(0), f"C{i}.-", label=name, **wide)
    left.set(xlabel="step", ylabel="rate", title="schedules whose rate is 0.5")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    middle.set(xlabel="the schedule's rate", ylabel="test accuracy, %", title="each rate")
    for i, gain in enumerate(gains.values()):
        error = [[100 * (gain.mean - gain.low)], [100 * (gain.high - gain.mean)]]
        right.errorbar(100 * gain.mean, i, xerr=error, fmt=f"C{i + 1}o", capsize=4)
    right.axvline(0, color="gray")
    right.set_yticks(range(len(gains)), gains)
    right.set(xlabel="test accuracy over the tuned constant, points", title="each at its best rate")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
