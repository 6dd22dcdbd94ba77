"""No single point of failure: hidden units removed at test time, and how they correlate.

MNIST's 5,000 (4,000 to train on, 1,000 to test): an MLP of two hidden layers of 128 ReLU units,
Adam at 1e-3, 600 steps of 64, trained without dropout and with 0.2 and 0.5 on its hidden layers.
At test time units are set to 0 and the rest stays as it is. Correlations are between the outputs
of units over the test set; units that never change are left out. The seed decides the split, the
weights, the batches and the masks.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from common import claim, data, nets
from common.claim import Finding, interval
from dropout_jax import dropout_unscaled, fold

RATES = (0.0, 0.2, 0.5)
REMOVED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
HIDDEN = 128
HINTON = "Hinton et al., arXiv 1207.0580, 2012; Srivastava et al., JMLR 2014"


def with_units(params, x, masks):
    """Logits where only the units of the masks are left; and the hidden layers' outputs."""
    features = []
    for layer, mask in zip(params[:-1], masks, strict=True):
        x = jax.nn.relu(nets.dense(layer, x)) * mask
        features.append(x)
    return nets.dense(params[-1], x), features


def correlation(features):
    """Mean absolute correlation between two different units, of those that vary."""
    centred = features - features.mean(0)
    spread = jnp.sqrt((centred**2).sum(0))
    live = spread > 1e-4
    unit = jnp.where(live, centred / jnp.where(live, spread, 1), 0)
    count = live.sum()
    return (jnp.abs(unit.T @ unit).sum() - count) / jnp.maximum(count * (count - 1), 1)


def run(split, seed, rate, steps, draws):
    """A network's accuracies by the share removed, its worst single unit, and its correlations."""

    def loss(params, rows, key):
        logits = nets.mlp(params, split.x_train[rows], rate, key=key)
        return nets.cross_entropy(logits, split.y_train[rows])

    key = jax.random.key(seed)
    params = nets.mlp_init(fold(key, "weights"), (split.x_train.shape[1], HIDDEN, HIDDEN, 10))
    params = nets.fit(loss, params, len(split.y_train), fold(key, "fit"), steps=steps)
    everything = jnp.ones((2, HIDDEN))

    def accuracy(i, share):
        masks = dropout_unscaled(everything, share, key=fold(key, "remove", i))
        return nets.accuracy(with_units(params, split.x_test, masks)[0], split.y_test)

    def loss_without(unit):
        masks = everything.at[unit // HIDDEN, unit % HIDDEN].set(0)
        return nets.cross_entropy(with_units(params, split.x_test, masks)[0], split.y_test)

    places, shares = jnp.arange(draws, dtype=jnp.uint32), jnp.array(REMOVED)
    accuracies = jax.lax.map(lambda i: jax.lax.map(lambda s: accuracy(i, s), shares), places)
    logits, features = with_units(params, split.x_test, everything)
    losses = jax.lax.map(loss_without, jnp.arange(2 * HIDDEN))
    rise = losses.max() - nets.cross_entropy(logits, split.y_test)
    correlations = jnp.array([correlation(layer) for layer in features])
    return accuracies.mean(0), rise, correlations


def findings_of(rates, curves, rises, correlations):
    """Each rate against none, seed by seed; curves (rate, seed, removed)."""
    drop = rates[1:]
    falls = curves[:, :, :1] - curves  # of accuracy, by what is removed
    half = REMOVED.index(0.5)
    less = {r: interval(falls[0, :, half] - falls[1 + i, :, half]) for i, r in enumerate(drop)}
    everywhere = {
        share: all(interval(falls[0, :, j] - each[:, j]).positive for each in falls[1:])
        for j, share in enumerate(REMOVED)
        if share
    }
    yield Finding(
        "Trained with dropout, a network loses less accuracy when hidden units are removed",
        HINTON,
        f"half of the units removed costs {interval(falls[0, :, half]):.1%} of accuracy without "
        "dropout; less is lost after training with dropout, by rate: " + listed(less, ".1%"),
        claim.verdict_by("the share removed is", everywhere),
    )
    milder = {r: interval(rises[0] - rises[1 + i]) for i, r in enumerate(drop)}
    yield Finding(
        "No single point of failure: with dropout no one unit matters as much",
        HINTON,
        f"the worst of {2 * HIDDEN} units, removed alone, raises the test loss by "
        f"{interval(rises[0]):.3f} nats without dropout; less with it, by rate: "
        + listed(milder, ".3f"),
        claim.verdict_by("the rate is", {rate: found.positive for rate, found in milder.items()}),
    )
    lower = {
        f"{rate} in hidden layer {layer + 1}": interval(
            correlations[0, :, layer] - correlations[1 + i, :, layer]
        )
        for i, rate in enumerate(drop)
        for layer in range(2)
    }
    plain = [f"{interval(correlations[0, :, layer]):.3f}" for layer in range(2)]
    yield Finding(
        "Dropout prevents co-adaptation, so that hidden features correlate less",
        f"read into {HINTON}, section 7.1",
        f"mean absolute correlation without dropout {' and '.join(plain)} in the two hidden "
        "layers; lower with dropout by, for each rate: " + listed(lower, ".3f"),
        claim.verdict_by("the rate is", {name: found.positive for name, found in lower.items()}),
    )


def listed(cells, form):
    """Intervals as text."""
    return "; ".join(f"{name}: {found:{form}}" for name, found in cells.items())


def draw(curves, rises, correlations):
    """Accuracy by what is removed, the worst unit, and correlations."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1.6, 0.8, 1))
    for i, rate in enumerate(RATES):
        found = [interval(each) for each in curves[i].T]
        panels[0].plot(REMOVED, [each.mean for each in found], "o-", ms=3, label=f"rate {rate}")
        panels[0].fill_between(REMOVED, *np.transpose([each[1:] for each in found]), alpha=0.2)
        bar(panels[1], i, rises[i], f"C{i}")
        for layer in range(2):
            bar(panels[2], layer + (i - 1) * 0.27, correlations[i, :, layer], f"C{i}", 0.25)
    panels[0].set(xlabel="share of hidden units removed", ylabel="test accuracy")
    panels[0].legend(title="training with")
    panels[1].set_xticks(range(len(RATES)), [str(rate) for rate in RATES])
    panels[1].set(xlabel="rate in training", ylabel="rise of test loss (nats)")
    panels[1].set_title("worst single unit removed")
    panels[2].set_xticks((0, 1), ["hidden layer 1", "hidden layer 2"])
    panels[2].set(ylabel="mean absolute correlation of units")
    return figure


def bar(axes, place, values, colour, width=0.7):
    """The mean over seeds with its interval."""
    found = interval(values)
    half = found.high - found.mean
    axes.bar(place, found.mean, width, yerr=half, color=colour, capsize=3)


def experiment(scale: claim.Scale) -> claim.Result:
    """All seeds and rates in one program."""
    seeds, steps, draws = scale.pick((3, 5, 1), (5, 600, 5), (10, 2000, 20))
    load = scale.pick(data.digits, data.mnist, data.mnist)
    splits = data.stacked(load, range(seeds))
    over_seeds = jax.vmap(lambda *x: run(*x, steps, draws), (0, 0, None))
    over_rates = jax.jit(jax.vmap(over_seeds, (None, None, 0)))
    found = over_rates(splits, jnp.arange(seeds, dtype=jnp.uint32), jnp.array(RATES))
    curves, rises, correlations = map(np.asarray, found)
    names = ("accuracy by rate, seed and share removed", "worst unit", "correlation")
    numbers = {"removed": REMOVED, **dict(zip(names, (curves, rises, correlations), strict=True))}
    findings = [*findings_of(RATES, curves, rises, correlations)]
    return claim.Result(findings, draw(curves, rises, correlations), numbers)


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
