"""Data size: where dropout helps, and where it costs.

An MLP of two hidden layers of 128 units (wide) or 8 (narrow), dropout on both, learns up to 100,000
MNIST digits of 14 x 14 pixels: 4,000 images shifted to 25 positions each; the test set is the other
1,000 at two positions. Every run takes 2,000 steps of Adam (2e-3, batches of 32), two thirds of a
pass over the largest set. A seed decides images, shifts, initial weights and batches; comparisons
are paired by seed, and no rate is chosen. (A first trial of 1,000 steps at 1e-3, with digits moved
twice as far, was too short for dropout; steps and task were then changed.)
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data
from common.claim import Finding, Result, by_cell, describe, interval, intervals, verdict
from common.nets import accuracy, cross_entropy, fit, mlp, mlp_init, run_grid
from dropout_jax import fold

WIDTHS = {"wide": 128, "narrow": 8}
SRIVASTAVA = 'Srivastava et al., "Dropout: a simple way to prevent ... overfitting", JMLR 2014'
DEEP_LEARNING = "Goodfellow, Bengio and Courville, Deep Learning, 2016, section 7.12"


def experiment(scale: claim.Scale) -> Result:
    sizes = (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
    sizes = scale.pick((50, 1000, 100_000), (100, 300, 1000, 3000, 10_000, 100_000), sizes)
    rates = scale.pick((0.0, 0.5), (0.0, 0.1, 0.2, 0.5), (0.0, 0.1, 0.2, 0.5, 0.7))
    steps, seeds = scale.pick(60, 2000, 2000), range(scale.pick(3, 5, 10))
    train, test = {}, {}  # accuracy by seed, size and rate
    for name, width in WIDTHS.items():
        run = make_run(width, steps)
        train[name], test[name] = run_grid(run, scale.track(seeds, name), sizes, rates)
    gains = {name: accuracies - accuracies[..., :1] for name, accuracies in test.items()}
    break_even = {name: break_even_sizes(gains[name], sizes, rates) for name in WIDTHS}
    numbers = {
        **{"sizes": sizes, "rates": rates, "steps": steps},
        "training accuracy": {name: accuracies.mean(0) for name, accuracies in train.items()},
        "test accuracy": {name: accuracies.mean(0) for name, accuracies in test.items()},
        "test accuracy gained": {
            name: [list(intervals(of_size, rates).values()) for of_size in gain.swapaxes(0, 1)]
            for name, gain in gains.items()
        },
        "size at which the gain ends": break_even,
    }
    falls = train["wide"] - train["wide"][..., :1]
    return Result(findings(falls, gains, sizes, rates), picture(gains, sizes, rates), numbers)


def make_run(width: int, steps: int):
    """The run of a seed, a size and a rate: accuracy in training, masks on, and in the test."""

    def run(seed, size, rate):
        key = jax.random.key(seed)
        train, test = data.shifted_mnist(key)
        params = mlp_init(fold(key, "weights"), (196, width, width, 10))

        def predict(params, examples, key):
            return mlp(params, examples[0], rate, key=key), examples[1]

        def loss(params, rows, key):
            return cross_entropy(*predict(params, train(rows), key))

        options = {"steps": steps, "batch_size": 32, "tx": optax.adam(2e-3)}
        params = fit(loss, params, size, fold(key, "fit"), **options)
        masked = predict(params, train(jnp.arange(1000) % size), key)
        return accuracy(*masked), accuracy(*predict(params, test(jnp.arange(2000)), None))

    return run


def break_even_sizes(gains, sizes, rates) -> dict[float, float | None]:
    """The size at which the mean gain of each rate ends for good."""
    means = {rate: gains[..., i].mean(0) for i, rate in enumerate(rates) if rate}
    return {rate: claim.zero_crossing(sizes, gain) for rate, gain in means.items()}


def findings(falls, gains, sizes, rates) -> list[Finding]:
    """Of changes of accuracy by seed, size and rate: in training, and in the test by width."""
    falls, wide, narrow = (each[..., 1:] for each in (falls, gains["wide"], gains["narrow"]))
    small = [f"{size} at {rate}" for size in sizes if size <= 5000 for rate in rates[1:]]
    flat = (each.reshape(len(each), -1)[:, : len(small)] for each in (falls, wide))
    falling, rising = (intervals(each, small) for each in flat)
    little_capacity, much_data = (intervals(x, rates[1:]) for x in (narrow.mean(1), wide[:, -1]))
    lowers = "On small data dropout lowers the accuracy in training (measured with its masks)"
    raises = "On small data dropout raises the accuracy of the test"
    little = "Where capacity is small dropout lowers the accuracy of the test"
    once = "In one pass over much data dropout does not help but costs accuracy"
    what, among = "wide, change by examples and rate", "the examples, and the rate, are"
    units, passes = "8 units, mean of the sizes, by rate", "wide, the largest size, by rate"
    mean = wide.mean(-1)  # of the rates
    over = {sizes[end]: interval(mean[:, 1:-1].mean(1) - mean[:, end]) for end in (0, -1)}
    break_even = break_even_sizes(gains["wide"], sizes, rates)
    last = {rate: f"{size:,.0f}" if size else "-" for rate, size in break_even.items()}
    return [
        by_cell(lowers, SRIVASTAVA, what, falling, among, "+.1%", -1),
        by_cell(raises, SRIVASTAVA, what, rising, among, "+.1%"),
        Finding(
            "The gain is small on the smallest data sets, grows with data, and declines again",
            SRIVASTAVA,
            f"wide, mean gain at intermediate sizes minus that at {describe(over, '+.2%')}; "
            f"examples at which the gain ends, by rate: {describe(last, '')}",
            verdict(all(cell.positive for cell in over.values())),
        ),
        by_cell(little, DEEP_LEARNING, units, little_capacity, "the rate is", "+.1%", -1),
        by_cell(once, DEEP_LEARNING, passes, much_data, "the rate is", "+.2%", -1),
    ]


def picture(gains, sizes, rates):
    figure, panels = charts.panels(6.5, 6.5)
    positions, ticks = range(len(sizes)), [f"{size:,}" for size in sizes]
    labels = {"xlabel": "training examples", "ylabel": "test accuracy gained, points"}
    for axes, (name, units) in zip(panels, WIDTHS.items(), strict=True):
        by_rate = {rate: 100 * gains[name][..., i] for i, rate in enumerate(rates) if rate}
        series = {f"rate {rate}": intervals(gain, sizes).values() for rate, gain in by_rate.items()}
        charts.lines(axes, positions, series, spacing=0.06)
        axes.set(xticks=positions, xticklabels=ticks, **labels)
        axes.set_title(f"{units} units a layer (the gain ends where a line crosses 0)")
        axes.axhline(0, color="black", linewidth=0.8)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
