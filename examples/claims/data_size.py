"""Data size: where dropout helps, and where it costs.

An MLP of two hidden layers learns MNIST digits up to two of their 28 pixels off the centre, at 14 x
14 pixels: 25 places for each of 4,000 images make 100,000 examples to take a training set from; the
other 1,000 images, each in two places, are the test. Every run takes 2,000 steps of Adam (at 2e-3,
batches of 32), whatever its training set: hundreds of passes over the smallest, and two thirds of a
pass over the largest, where an example is hardly seen twice. Dropout is on both hidden layers; wide
ones have 128 units, narrow ones 8. A seed decides images, places, initial weights and batches, so
all comparisons are within a seed. No rate is chosen: findings name theirs. (A first trial, of 1,000
steps at 1e-3 and digits twice as far off, was too short for dropout: with 1,000 examples and rate
0.5 the accuracy in training was 28 points below that without. Steps and task were then changed.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from common import claim, data
from common.claim import Finding, Result, interval, verdict, verdict_by
from common.nets import accuracy, cross_entropy, fit, grid, mlp, mlp_init
from dropout_jax import fold

RATES = (0.0, 0.1, 0.2, 0.5)
PLACES = 25
FALLS = "On small data dropout lowers the accuracy in training (seen with its masks)"
RISES = "On small data dropout raises the accuracy of the test"
TX = optax.adam(2e-3)
SRIVASTAVA = 'Srivastava et al., "Dropout: a simple way to prevent ... overfitting", JMLR 2014'
DEEP_LEARNING = "Goodfellow, Bengio and Courville, Deep Learning, 2016, section 7.12"


def experiment(scale: claim.Scale) -> Result:
    sizes = (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
    sizes = scale.pick((50, 1000, 100_000), (100, 300, 1000, 3000, 10_000, 100_000), sizes)
    steps, seeds = scale.pick(60, 2000, 2000), range(scale.pick(3, 5, 10))
    rates = scale.pick((0.0, 0.5), RATES, (*RATES, 0.7))
    train, test = {}, {}  # accuracy by seed, size and rate
    for name, width in {"wide": 128, "narrow": 8}.items():
        bar = scale.track(seeds, f"seeds, {name}")
        train[name], test[name] = grid(runs(width, steps), bar, sizes, rates)
    gains = {name: found - found[..., :1] for name, found in test.items()}
    falls = {name: found - found[..., :1] for name, found in train.items()}
    findings = [
        small_data(FALLS, falls["wide"], sizes, rates, -1),
        small_data(RISES, gains["wide"], sizes, rates, 1),
        tiny_data(gains["wide"], sizes),
        little_capacity(gains["narrow"], rates),
        one_pass(gains["wide"], rates),
    ]
    crossings = {
        name: {rate: crossing(sizes, gain[..., i].mean(0)) for i, rate in enumerate(rates) if i}
        for name, gain in gains.items()
    }
    numbers = {
        "sizes": sizes,
        "rates": rates,
        "steps": steps,
        "training accuracy": {name: found.mean(0) for name, found in train.items()},
        "test accuracy": {name: found.mean(0) for name, found in test.items()},
        "test accuracy gained": {name: intervals(gain) for name, gain in gains.items()},
        "size at which the gain ends": crossings,
    }
    return Result(findings, picture(sizes, rates, gains, crossings), numbers)


def runs(width: int, steps: int):
    """The run of a seed, a size and a rate: accuracy in training, masks on, and in the test."""
    images, labels = data.all_mnist()
    padded = jnp.pad(images, ((0, 0), (2, 2), (2, 2)))

    def examples(order, places, rows):
        """Example i is image i mod 4000 at its place number i // 4000, so no two are equal."""
        image = order[rows % len(order)]
        place = places[rows % len(order), rows // len(order)]

        def crop(image, place):
            whole = jax.lax.dynamic_slice(padded, (image, place // 5, place % 5), (1, 28, 28))
            return data.halved(whole).ravel()

        return jax.vmap(crop)(image, place), labels[image]

    def run(seed, size, rate):
        key = jax.random.key(seed)
        order = jax.random.permutation(fold(key, "images"), len(images))
        places = jax.random.uniform(fold(key, "places"), (4000, PLACES)).argsort(-1)
        params = mlp_init(fold(key, "weights"), (196, width, width, 10))

        def loss(params, rows, key):
            x, y = examples(order[:4000], places, rows)
            return cross_entropy(mlp(params, x, rate, key=key), y)

        params = fit(loss, params, size, fold(key, "fit"), steps=steps, batch_size=32, tx=TX)

        def right(order, rows, key):
            x, y = examples(order, places, rows)
            return accuracy(mlp(params, x, rate, key=key), y)

        seen = jnp.arange(1000) % size
        return right(order[:4000], seen, key), right(order[4000:], jnp.arange(2000), None)

    return run


def intervals(gains):
    """By size and rate: the interval over seeds."""
    return [
        [interval(gains[:, i, j]) for j in range(gains.shape[2])] for i in range(gains.shape[1])
    ]


def crossing(sizes, gain) -> float | None:
    """The size at which a gain that was positive ends for good, on a logarithmic scale.

    None if the gain is still positive at the largest size, or is so at none.
    """
    positive = np.flatnonzero(np.asarray(gain) > 0)
    if len(positive) == 0 or positive[-1] == len(sizes) - 1:
        return None
    i = positive[-1]
    share = gain[i] / (gain[i] - gain[i + 1])
    return float(np.exp(np.log(sizes[i]) + share * np.log(sizes[i + 1] / sizes[i])))


def small_data(text: str, changes, sizes, rates, sign: int) -> Finding:
    """A claim that a change of accuracy has a sign on all data sets of up to 5,000 examples."""
    cells = {
        f"{size} at {rate}": interval(changes[:, i, j])
        for i, size in enumerate(sizes)
        for j, rate in enumerate(rates)
        if size <= 5000 and rate
    }
    told = "; ".join(f"{name}: {change:+.1%}" for name, change in cells.items())
    held = {name: it.positive if sign > 0 else it.negative for name, it in cells.items()}
    return Finding(
        text,
        SRIVASTAVA,
        f"wide, change of accuracy by examples and rate: {told}",
        verdict_by("the examples, and the rate, are", held),
    )


def tiny_data(gains, sizes) -> Finding:
    mean = gains[..., 1:].mean(-1)  # over the rates
    first, last = (interval(mean[:, 1:-1].mean(1) - mean[:, end]) for end in (0, -1))
    return Finding(
        "The gain is small on the smallest data sets, grows with data, and declines again",
        SRIVASTAVA,
        f"wide, mean of the rates: the mean gain at the sizes between exceeds that at {sizes[0]} "
        f"examples by {first:+.2%} and that at {sizes[-1]:,} by {last:+.2%}",
        verdict(first.positive and last.positive),
    )


def little_capacity(gains, rates) -> Finding:
    text = "Where capacity is small dropout lowers the accuracy of the test"
    return costs(text, "8 units a layer, mean of the sizes", gains.mean(1), rates, "+.1%")


def one_pass(gains, rates) -> Finding:
    text = "In one pass over much data dropout does not help: it costs"
    return costs(text, "wide, hardly an example seen twice", gains[:, -1], rates, "+.2%")


def costs(text: str, setting: str, gains, rates, spec: str) -> Finding:
    """Of gains by (seed, rate): that dropout lowers the accuracy."""
    found = {rate: interval(gains[:, i]) for i, rate in enumerate(rates) if rate}
    told = "; ".join(f"{rate}: {gain:{spec}}" for rate, gain in found.items())
    held = verdict_by("the rate is", {rate: gain.negative for rate, gain in found.items()})
    return Finding(text, DEEP_LEARNING, f"{setting}, by rate: {told}", held)


def picture(sizes, rates, gains, crossings) -> Figure:
    """Test accuracy gained, by size and rate, and where the gain ends."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, len(gains))
    for axes, (name, units) in zip(panels, {"wide": 128, "narrow": 8}.items(), strict=True):
        mean = 100 * gains[name].mean(0).T[1:]
        limit = np.abs(mean).max()
        image = axes.imshow(mean, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        for (row, column), value in np.ndenumerate(mean):
            color = "white" if abs(value) > 0.6 * limit else "black"
            axes.text(column, row, f"{value:+.1f}", ha="center", va="center", color=color)
        places = np.interp(
            np.log([crossings[name][rate] or np.nan for rate in rates[1:]]),
            np.log(sizes),
            np.arange(len(sizes)),
        )
        axes.plot(places, np.arange(len(rates) - 1), "k|", markersize=30, markeredgewidth=3)
        axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
        axes.set_yticks(range(len(rates) - 1), [f"{rate}" for rate in rates[1:]])
        axes.set(xlabel="training examples", ylabel="dropout rate")
        axes.set_title(f"{units} units a layer (bar: the gain ends)")
        figure.colorbar(image, ax=axes, label="test accuracy gained, points")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
