"""The cost of dropout: steps to the same training loss, and the time of a step.

An MLP of two hidden layers of 128 units, dropout on both, learns 4,000 MNIST digits of 14 x 14
pixels by Adam (at 1e-3, batches of 64). The loss is that of all 4,000, dropout off, every 25 steps;
a run has reached a loss at the first look below it, interpolated between looks. Ratios of steps are
against the same seed without dropout, which decides the split, initial weights and batches. The
time of a step is not measured here: it is read from benchmarks/results/train_step-cpu.json, made by
benchmarks/bench_train_step.py on minigpt's presets, medians of 15 rounds.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from common import claim, data
from common.claim import Finding, Interval, Result, interval, verdict_by
from common.nets import cross_entropy, fit_looking, grid, mlp, mlp_init
from dropout_jax import fold

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "results" / "train_step-cpu.json"
EVERY, TARGETS = 25, (0.3, 0.1, 0.03)
ALEXNET = 'Krizhevsky et al., "ImageNet classification with deep convolutional ...", NeurIPS 2012'
SRIVASTAVA = "Srivastava et al., JMLR 2014, conclusion"


def experiment(scale: claim.Scale) -> Result:
    rates = scale.pick((0.0, 0.5), (0.0, 0.1, 0.2, 0.3, 0.5), (0.0, 0.1, 0.2, 0.3, 0.5, 0.7))
    steps, seeds = scale.pick(200, 4000, 12000), range(scale.pick(3, 5, 10))
    targets = scale.pick((1.5, 1.0), TARGETS, TARGETS)
    losses = grid(run_of(steps), scale.track(seeds, "seeds"), rates)  # (seed, rate, look)
    ratios = {target: ratios_of(losses, target, rates) for target in targets}
    times = step_times(json.loads(BENCHMARK.read_text()))
    findings = [
        within("Dropout at rate 0.5 roughly doubles the iterations", ALEXNET, 1.5, 2.5, ratios),
        within("Dropout at rate 0.5 takes 2 to 3 times longer to train", SRIVASTAVA, 2, 3, ratios),
        of_a_step(times),
    ]
    numbers = {
        "rates": rates,
        "looks, in steps": EVERY,
        "training loss by rate and look": losses.mean(0),
        "steps to the same loss, as a ratio, by loss and rate": ratios,
        "time of a step, as a ratio": times,
    }
    return Result(findings, picture(losses, rates, ratios, times), numbers)


def run_of(steps: int):
    """The run of a seed and a rate: the training loss, dropout off, at every look."""
    images, labels = data.all_mnist()
    images = data.halved(images).reshape(len(images), -1)

    def run(seed, rate):
        key = jax.random.key(seed)
        train = jax.random.permutation(fold(key, "images"), len(images))[:4000]
        params = mlp_init(fold(key, "weights"), (196, 128, 128, 10))

        def loss(params, rows, key):
            rows = train[rows]
            return cross_entropy(mlp(params, images[rows], rate, key=key), labels[rows])

        def look(params):
            return loss(params, jnp.arange(4000), None)

        more = {"looks": steps // EVERY, "steps": steps}
        return fit_looking(loss, params, 4000, fold(key, "fit"), look, **more)[1]

    return run


def first_below(losses, target: float) -> float:
    """The step, between looks, at which the loss first falls to the target; NaN if it never does.

    The logarithm of the loss is taken as linear between looks.
    """
    losses = np.asarray(losses, np.float64)
    below = np.flatnonzero(losses <= target)
    if len(below) == 0:
        return np.nan
    i = below[0]
    if i == 0:
        return float(EVERY)
    share = np.log(losses[i - 1] / target) / np.log(losses[i - 1] / losses[i])
    return float(EVERY * (i + share))


def ratios_of(losses, target: float, rates) -> dict[float, Interval | None]:
    """Steps to the target by rate, as a multiple of those without dropout; None if not reached."""
    steps = np.array([[first_below(run, target) for run in seed] for seed in losses])
    found = {rate: steps[:, i] / steps[:, 0] for i, rate in enumerate(rates) if rate}
    return {rate: None if np.isnan(them).any() else interval(them) for rate, them in found.items()}


def within(text: str, source: str, low: float, high: float, ratios) -> Finding:
    """A claim on the ratio of steps at rate 0.5: it holds where the whole interval is within."""
    found = {target: by_rate[0.5] for target, by_rate in ratios.items()}
    told = "; ".join(f"{at}: {it:.2f}" if it else f"{at}: not reached" for at, it in found.items())
    held = {at: it is not None and low <= it.low and it.high <= high for at, it in found.items()}
    return Finding(
        text,
        source,
        f"steps at rate 0.5 over those at 0, by training loss to be reached: {told} "
        f"(it holds where the interval is within {low} to {high})",
        verdict_by("the training loss to be reached is", held),
    )


def step_times(benchmark) -> dict[str, Interval]:
    """By framework and preset: a step with dropout over one without.

    Of the median, from the quartiles of 15 rounds: 1.57 IQR / sqrt(15) to either side (McGill et
    al., "Variations of box plots", 1978).
    """
    found = {
        (row["framework"], row["preset"], row["dropout"]): row["to_minigpt_without_dropout"]
        for row in benchmark["rows"]
    }
    times = {}
    for (framework, preset, rate), (lower, median, upper) in found.items():
        if rate:
            half, without = 1.57 * (upper - lower) / np.sqrt(15), found[framework, preset, 0.0][1]
            values = (median / without, (median - half) / without, (median + half) / without)
            times[f"{framework} on {preset}"] = Interval(*values)
    return times


def of_a_step(times) -> Finding:
    told = "; ".join(f"{name} {found:.2f}" for name, found in times.items())
    return Finding(
        "Dropout is cheap to compute: it adds less than a tenth to a step",
        "Goodfellow et al., Deep Learning, 2016, section 7.12, who say cheap without a figure",
        f"time of a step at rate 0.2 over one at 0, on a CPU: {told}",
        verdict_by("it is", {name: found.high < 1.1 for name, found in times.items()}),
    )


def picture(losses, rates, ratios, times) -> Figure:
    """Training loss by steps, the ratio of steps by rate, and the time of a step."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    steps = EVERY * (1 + np.arange(losses.shape[-1]))
    for i, rate in enumerate(rates):
        left.plot(steps, losses[:, i].mean(0), color=f"C{i}", label=f"rate {rate}")
    for i, (target, by_rate) in enumerate(ratios.items()):
        left.axhline(target, color="gray", linestyle=":", linewidth=1)
        known = {rate: found for rate, found in by_rate.items() if found}
        low, high = ([abs(it.mean - it[side]) for it in known.values()] for side in (1, 2))
        means = [it.mean for it in known.values()]
        style = {"fmt": f"C{i}o-", "capsize": 3, "label": f"to a loss of {target}"}
        middle.errorbar(list(known), means, yerr=[low, high], **style)
    left.set(yscale="log", xlabel="step", ylabel="training loss, nats, dropout off")
    middle.set(xlabel="rate", ylabel="steps / steps without dropout", title="steps")
    for axes in (left, middle):
        axes.legend(fontsize=8)
    for i, (name, found) in enumerate(times.items()):
        error = [[found.mean - found.low], [found.high - found.mean]]
        right.barh(i, found.mean, xerr=error, color="C1" if name.startswith("torch") else "C0")
    right.axvline(1, color="black", linewidth=0.8)
    right.set_yticks(range(len(times)), [name.replace(" on ", "\n") for name in times], fontsize=8)
    right.set(xlabel="time of a step at rate 0.2 / at 0", title="time (of the benchmark)")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
