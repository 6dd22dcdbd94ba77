"""Batch norm: the shift of variance that dropout before it makes, and what it costs.

In training batch norm sees dropped and scaled inputs, whose variance is larger; it keeps a running
average of that, and divides by it at evaluation, where nothing is dropped. An input of mean m and
second moment s has variance s - m^2 at evaluation and s / (1 - rate) - m^2 in training, a ratio of
1 / (1 - rate) where m is 0. The network has three hidden layers of 128 units, each dense, batch
norm, ReLU, and learns 1,000 MNIST digits of 14 x 14 pixels by 1,000 steps of Adam (at 1e-3, batches
of 64). Dropout follows the first two ReLUs ("before", as batch norms come after it) or the last one
alone ("after" all batch norms). Statistics are those of the training set in training mode, the
limit of running averages, or are taken again without dropout. Accuracy is that of 2,000 other
digits. A seed decides the split, initial weights and batches.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from common import claim, data
from common.claim import Finding, Result, interval, verdict_by
from common.nets import accuracy, cross_entropy, dense, fit, grid, mlp_init
from dropout_jax import dropout, fold

BEFORE, AFTER = (1.0, 1.0, 0.0), (0.0, 0.0, 1.0)  # times the rate, by hidden layer
LI = 'Li et al., "Understanding the disharmony between dropout and batch normalization", CVPR 2019'


def experiment(scale: claim.Scale) -> Result:
    rates = scale.pick((0.0, 0.5), (0.0, 0.1, 0.3, 0.5), (0.0, 0.1, 0.2, 0.3, 0.5, 0.7))
    steps, seeds = scale.pick(60, 1000, 3000), range(scale.pick(3, 8, 20))
    draws = scale.pick(10**4, 10**6, 10**7)
    shift = {rate: measured_and_closed_form(rate, draws) for rate in rates}
    bar = scale.track(seeds, "seeds")
    ratios, running, again = grid(run_of(steps), bar, (0, 1), rates)  # (seed, place, rate)
    before, after = range(2)
    found = {
        name: {rate: interval(values[:, i]) for i, rate in enumerate(rates) if rate}
        for name, values in {
            "ratio": ratios[:, before, :, -1],
            "before, over none": running[:, before] - running[:, before, :1],
            "after, over before": running[:, after] - running[:, before],
            "after, over none": running[:, after] - running[:, after, :1],
            "again, over running": (again - running)[:, before],
        }.items()
    }
    numbers = {
        "rates": rates,
        "steps": steps,
        "variance in training over that at evaluation, (measured, closed form)": shift,
        "the same by place, rate and batch norm": ratios.mean(0),
        "accuracy by place and rate, running statistics": running.mean(0),
        "accuracy by place and rate, statistics taken again": again.mean(0),
        "differences": found,
    }
    return Result(
        findings(found, shift, draws), picture(rates, shift, ratios, running, again), numbers
    )


def findings(found, shift, draws) -> list[Finding]:
    told = {
        name: "; ".join(
            f"{rate}: {it:{'.2f' if name == 'ratio' else '+.1%'}}" for rate, it in by.items()
        )
        for name, by in found.items()
    }
    forms = {rate: is_closed_form(shift[rate], rate, draws) for rate in shift}
    example = ", ".join(f"{n}: {a:.3f} for {b:.3f}" for n, (a, b) in shift[max(shift)].items())
    return [
        Finding(
            "Dropout scales the variance of its output by 1 / (1 - rate) where the mean is 0",
            LI,
            f"{draws:,} draws, ratio measured for closed form at rate {max(shift)}: {example}",
            verdict_by("the rate is", forms),
        ),
        Finding(
            "So a batch norm after it sees more variance in training than at evaluation",
            LI,
            f"the ratio at the last batch norm of the trained network, by rate: {told['ratio']}",
            verdict_by("the rate is", {rate: it.low > 1 for rate, it in found["ratio"].items()}),
        ),
        Finding(
            "Dropout before batch norm makes a network worse",
            LI,
            f"test accuracy over that without dropout, by rate: {told['before, over none']}",
            verdict_by(
                "the rate is", {r: it.negative for r, it in found["before, over none"].items()}
            ),
        ),
        Finding(
            "Dropout belongs after all batch norms",
            LI,
            f"test accuracy over dropout before, by rate: {told['after, over before']}; over none: "
            f"{told['after, over none']}",
            verdict_by(
                "the rate is", {r: it.positive for r, it in found["after, over before"].items()}
            ),
        ),
        Finding(
            "Taking the statistics again without dropout mends it",
            LI,
            f"dropout before; test accuracy gained, by rate: {told['again, over running']}",
            verdict_by(
                "the rate is", {r: it.positive for r, it in found["again, over running"].items()}
            ),
        ),
    ]


def is_closed_form(shift, rate: float, draws: int) -> bool:
    """Within five standard errors, sqrt(kurtosis / draws); the kurtosis is below 6 / (1 - rate)."""
    bound = 5 * np.sqrt(6 / (1 - rate) / draws)
    return all(abs(measured / expected - 1) < bound for measured, expected in shift.values())


def measured_and_closed_form(rate: float, draws: int, drop=dropout):
    """For inputs of mean 0 and for rectified ones: variance in training over that at evaluation."""
    key = jax.random.key(0)
    normal = jax.random.normal(fold(key, "inputs"), (draws,))
    found = {}
    for name, x in (("mean 0", normal), ("rectified", jax.nn.relu(normal))):
        mean, square = x.mean(), (x * x).mean()
        expected = (square / (1 - rate) - mean**2) / (square - mean**2)
        measured = drop(x, rate, key=fold(key, "dropout")).var() / x.var()
        found[name] = (float(measured), float(expected))
    return found


def net(layers, x, rates, statistics=None, *, key):
    """Logits, and the mean and variance that each batch norm saw; `statistics` replaces those."""
    seen = []
    for i, layer in enumerate(layers[:-1]):
        x = dense(layer, x)
        seen.append((x.mean(0), x.var(0)))
        mean, variance = (statistics or seen)[i]
        x = jax.nn.relu((x - mean) / jnp.sqrt(variance + 1e-5))
        x = dropout(x, rates[i], key=fold(key, "hidden", i))
    return dense(layers[-1], x), seen


def run_of(steps: int):
    """The run of a seed, a place and a rate: ratios of variances, and accuracies."""
    images, labels = data.all_mnist()
    images = data.halved(images).reshape(len(images), -1)

    def run(seed, place, rate):
        key, rates = jax.random.key(seed), rate * jnp.array([BEFORE, AFTER])[place]
        train, test = jnp.split(jax.random.permutation(fold(key, "images"), 5000)[:3000], [1000])
        params = mlp_init(fold(key, "weights"), (196, 128, 128, 128, 10))

        def loss(params, rows, key):
            rows = train[rows]
            return cross_entropy(net(params, images[rows], rates, key=key)[0], labels[rows])

        params = fit(loss, params, len(train), fold(key, "fit"), steps=steps)
        running = net(params, images[train], rates, key=fold(key, "statistics"))[1]
        again = net(params, images[train], rates, key=None)[1]

        def right(statistics):
            logits, seen = net(params, images[test], rates, statistics, key=None)
            return accuracy(logits, labels[test]), seen

        # The evaluation's variances are the training images' too, so that images do not matter.
        seen = net(params, images[train], rates, running, key=None)[1]
        ratios = jnp.stack(
            [(a[1] / (b[1] + 1e-5)).mean() for a, b in zip(running, seen, strict=True)]
        )
        return ratios, right(running)[0], right(again)[0]

    return run


def picture(rates, shift, ratios, running, again) -> Figure:
    """The ratio by rate, by batch norm in a trained network, and the accuracies."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name in ("mean 0", "rectified"):
        measured, expected = zip(*(shift[rate][name] for rate in rates), strict=True)
        (line,) = left.plot(rates, expected, label=f"closed form, {name}")
        left.plot(rates, measured, "o", color=line.get_color(), label=f"measured, {name}")
    left.set(xlabel="rate", ylabel="variance in training / at evaluation", title="one dropout")
    for i, place in enumerate(("before", "after")):
        for j, rate in enumerate(rates):
            if rate:
                style = {"color": f"C{j}", "linestyle": "-:"[i], "label": f"{place}, rate {rate}"}
                middle.plot([1, 2, 3], ratios[:, i, j].mean(0), marker="o", **style)
        accuracy = running[:, i].mean(0)
        right.plot(rates, 100 * accuracy, f"C{i}o-", label=f"{place} batch norm")
    right.plot(rates, 100 * again[:, 0].mean(0), "C0o:", label="before, statistics taken again")
    middle.set_xticks([1, 2, 3])
    middle.set(xlabel="batch norm, from the input", title="in the trained network")
    right.set(xlabel="rate", ylabel="test accuracy, %", title="what it costs")
    for axes in (left, middle, right):
        axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
