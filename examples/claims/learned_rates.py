"""Concrete dropout: what rates it learns from little data and from much.

sklearn's digits, 397 kept for the test; an MLP 64-64-64-10 with ReLU and dropout of its inputs and
of both hidden layers, each with a rate of its own, learned from 0.1 and from 0.5; prior length
scale 0.1. The logit of a rate is ten times its parameter, so that Adam (1e-3, 2,000 steps of 32)
can move it. Fixed rates have the same penalty on the weights. The seed decides split, weights and
noise; the sets of a seed are nested.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from common import charts, claim, data, nets
from dropout_jax import concrete_dropout, concrete_dropout_penalty, dropout, fold

SIZES, STARTS, FIXED = (50, 150, 450, 1400), (0.1, 0.5), (0.0, 0.1, 0.5)
LAYERS = ("inputs", "hidden 1", "hidden 2")
GAL = "Gal, Hron and Kendall, Concrete dropout, NeurIPS 2017"


def net(layers, x, rates, *, key, drop):
    """Logits of an MLP with `drop` before every layer, at a rate (or its logit) of its own."""
    for i, layer in enumerate(layers):
        x = x if i == 0 else jax.nn.relu(x)
        x = nets.dense(layer, drop(x, rates[i], key=fold(key, "layer", i)))
    return x


def penalty(layers, logits, size):
    """Concrete dropout's addition to a mean cross-entropy over `size` examples."""
    return sum(
        concrete_dropout_penalty(
            layer["weights"], logit, weight_scale=0.1**2 / size, dropout_scale=1 / size
        )
        for layer, logit in zip(layers, logits, strict=True)
    )


def train(learn: bool, rates, splits, steps: int, sizes=SIZES):
    """Learned rates and test accuracy, for (first or fixed rate, seed, size)."""

    def one(rate, seed, split, size):
        key, logit = jax.random.key(seed), jnp.log(rate) - jnp.log1p(-rate)
        drop = concrete_dropout if learn else dropout

        def of(params):
            return 10 * params["logits"] if learn else [rate] * 3

        def loss(params, rows, key):
            logits = net(params["layers"], split.x_train[rows], of(params), key=key, drop=drop)
            # Not learned: the weights' share of the penalty at that rate, whose entropy is fixed.
            at = of(params) if learn else [jnp.maximum(logit, -20.0)] * 3
            own = penalty(params["layers"], at, size)
            return nets.cross_entropy(logits, split.y_train[rows]) + own

        layers = nets.mlp_init(fold(key, "weights"), (64, 64, 64, 10))
        params = {"layers": layers, "logits": jnp.full(3, logit / 10 if learn else 0.0)}
        params = nets.fit(loss, params, size, key, steps=steps, batch_size=32)
        logits = net(params["layers"], split.x_test, of(params), key=None, drop=drop)
        return jax.nn.sigmoid(10 * params["logits"]), nets.accuracy(logits, split.y_test)

    by_size = jax.vmap(one, (None, None, None, 0))
    each = jnp.array(sizes)
    return nets.over_rates_and_seeds(lambda *a: by_size(*a, each), rates, splits)


def experiment(scale: claim.Scale) -> claim.Result:
    """Learn the rates at every size, and train with fixed ones."""
    seeds, steps = scale.pick(3, 5, 10), scale.pick(3, 2000, 8000)
    splits = data.stacked(functools.partial(data.digits, max(SIZES)), range(seeds))
    jobs = scale.track((True, False), "learned and fixed rates")
    (learned, score), (_, fixed) = (
        train(learn, STARTS if learn else FIXED, splits, steps) for learn in jobs
    )
    findings = [falls(learned), forgets_start(learned)]
    findings += [better(score[0], of, rate) for rate, of in zip(FIXED, fixed, strict=True)]
    numbers = {"sizes": SIZES, "learned (start, seed, size, layer)": learned}
    numbers |= {"accuracy, learned": score, "accuracy, fixed": dict(zip(FIXED, fixed, strict=True))}
    return claim.Result(findings, picture(learned[0], score[0], fixed), numbers)


def falls(learned) -> claim.Finding:
    """Whether each layer's rate falls from each size to the next."""
    rates = learned[0]
    cells = {
        f"{layer} from {a} to {b}": claim.interval(rates[:, i, j] - rates[:, i + 1, j]).positive
        for j, layer in enumerate(LAYERS)
        for i, (a, b) in enumerate(itertools.pairwise(SIZES))
    }
    ends = {
        f"{layer}, {SIZES[i]}": claim.interval(rates[:, i, j])
        for j, layer in enumerate(LAYERS)
        for i in (0, -1)
    }
    return claim.Finding(
        "The learned rate falls as data grows.",
        GAL,
        f"Rates by layer and examples, from 0.1: {claim.listed(ends, '.3f')}.",
        claim.verdict_by("what grows is the data of", cells),
    )


def forgets_start(learned) -> claim.Finding:
    """Whether the rate learned depends on the first."""
    gaps = {
        size: claim.interval(abs(learned[0, :, i] - learned[1, :, i]).max(-1))
        for i, size in enumerate(SIZES)
    }
    return claim.Finding(
        "The rate is learned: what it starts from does not matter (within 0.02).",
        GAL,
        "Largest difference of a layer's rate, from 0.1 or from 0.5, by examples: "
        f"{claim.listed(gaps, '.3f')}.",
        claim.verdict_by("the examples are", {size: gap.high < 0.02 for size, gap in gaps.items()}),
    )


def better(score, fixed, rate) -> claim.Finding:
    """Learned rates against one fixed rate everywhere."""
    cells = [{size: of[:, i] for i, size in enumerate(SIZES)} for of in (score, fixed)]
    other = f"{rate} everywhere" if rate else "no dropout"
    what = f"Points of test accuracy above {other}, by examples"
    sentence = f"Learned rates generalise better than {other}."
    return claim.compare(sentence, GAL, *cells, what, "the examples are")


def picture(rates, score, fixed) -> Figure:
    """Rates and accuracy against the size of the data."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for j, layer in enumerate(LAYERS):
        charts.points(left, SIZES, map(claim.interval, rates[:, :, j].T), layer)
    charts.points(right, SIZES, map(claim.interval, 100 * score.T), "learned")
    for rate, found in zip(FIXED, fixed, strict=True):
        charts.points(right, SIZES, map(claim.interval, 100 * found.T), f"{rate} everywhere", ".--")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="training examples")
        axes.set_xticks(SIZES, SIZES)
        axes.minorticks_off()
        axes.legend()
    left.set(ylabel="learned rate", ylim=(0, None))
    right.set(ylabel="test accuracy, %")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
