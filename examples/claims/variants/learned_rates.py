"""Concrete dropout: the rates that it learns from little data and from much.

sklearn's digits, 397 kept for the test; an MLP 64-64-64-10 with ReLU and dropout of its inputs and
of both hidden layers, each with a rate of its own, learned from 0.1 and from 0.5; prior length
scale 0.1. The logit of a rate is ten times its parameter, so that Adam (1e-3, 2,000 steps of 32)
can move it. The seed decides split, weights and noise; the sets of a seed are nested.
"""

import functools
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, data, nets
from common.claim import Finding, Result, Scale, by_cell, interval, main
from dropout_jax import concrete_dropout, concrete_dropout_penalty, fold

SIZES, INITIAL_RATES, LAYERS = (50, 150, 450, 1400), (0.1, 0.5), ("inputs", "hidden 1", "hidden 2")
MARGIN = 0.02  # of a rate: a smaller difference between initial rates counts as none
GAL = "Gal, Hron and Kendall, Concrete dropout, NeurIPS 2017"


def experiment(scale: Scale) -> Result:
    """Learn the rates at every size, from each initial rate."""
    splits, steps = make_splits(scale)
    jobs = scale.track(INITIAL_RATES, "initial rates")
    rates = np.concatenate([train([initial_rate], splits, steps)[0] for initial_rate in jobs])
    numbers = {"sizes": SIZES, "learned (start, seed, size, layer)": rates}
    return Result([judge_fall(rates[0]), judge_independence(rates)], picture(rates), numbers)


def make_splits(scale: Scale):
    """The seeds' splits, and the number of training steps."""
    seeds, steps = scale.pick(3, 5, 10), scale.pick(3, 2000, 8000)
    return data.stack_splits(functools.partial(data.load_digits, max(SIZES)), range(seeds)), steps


def train(initial_rates, splits, steps: int):
    """Learned rates and test accuracy, for (initial rate, seed, size)."""

    def one(initial_rate, seed, split, size):
        key = jax.random.key(seed)

        def loss(params, rows, key):
            layers, logits_of_rates = params["layers"], 10 * params["logits"]
            outputs = net(
                layers, split.x_train[rows], logits_of_rates, key=key, drop=concrete_dropout
            )
            entropy = nets.cross_entropy(outputs, split.y_train[rows])
            return entropy + penalty(layers, logits_of_rates, size)

        layers = nets.mlp_init(fold(key, "weights"), (64, 64, 64, 10))
        logit = jnp.log(initial_rate) - jnp.log1p(-initial_rate)
        params = {"layers": layers, "logits": jnp.full(3, logit / 10)}
        params = nets.fit(loss, params, size, key, steps=steps, batch_size=32)
        logits_of_rates = 10 * params["logits"]
        outputs = net(
            params["layers"], split.x_test, logits_of_rates, key=None, drop=concrete_dropout
        )
        return jax.nn.sigmoid(logits_of_rates), nets.accuracy(outputs, split.y_test)

    def all_sizes(initial_rate, seed, split):
        return jax.vmap(one, (None, None, None, 0))(initial_rate, seed, split, jnp.array(SIZES))

    return nets.run_rates_and_seeds(all_sizes, initial_rates, splits)


def net(layers, x, rates, *, key, drop):
    """Logits of an MLP with `drop` before every layer, at a rate (or its logit) of its own."""
    for i, layer in enumerate(layers):
        x = x if i == 0 else jax.nn.relu(x)
        x = nets.dense(layer, drop(x, rates[i], key=fold(key, "layer", i)))
    return x


def penalty(layers, logits, size):
    """The term that concrete dropout adds to a mean cross-entropy over `size` examples."""
    scales = {"weight_scale": 0.1**2 / size, "dropout_scale": 1 / size}
    return sum(
        concrete_dropout_penalty(layer["weights"], logit, **scales)
        for layer, logit in zip(layers, logits, strict=True)
    )


def judge_fall(rates) -> Finding:
    """Whether each layer's rate, for (seed, size, layer), falls from each size to the next."""
    change = np.diff(rates, axis=1)
    cells = {
        f"{layer} from {few} to {more}": interval(change[:, i, j])
        for j, layer in enumerate(LAYERS)
        for i, (few, more) in enumerate(itertools.pairwise(SIZES))
    }
    what = "Change of the rate learned from 0.1, by layer and examples"
    text, condition = "The learned rate falls as data grows", "what grows is the data of"
    return by_cell(text, GAL, what, cells, condition, sign=-1)


def judge_independence(rates) -> Finding:
    """Whether learned rates, for (initial rate, seed, size, layer), depend on the initial rate."""
    gaps = abs(rates[0] - rates[1]).max(-1)
    beyond = {size: interval(gaps[:, i] - MARGIN) for i, size in enumerate(SIZES)}
    text = f"The learned rate does not depend on its initial value (within {MARGIN})"
    what = "Largest difference in a layer between initial rates 0.1 and 0.5"
    what += f", minus {MARGIN}, by examples"
    return by_cell(text, GAL, what, beyond, "the examples are", sign=-1)


def picture(rates) -> Figure:
    """Rates against the size of the data."""
    figure, panels = charts.panels(5, 5)
    for axes, initial_rate, learned_rates in zip(panels, INITIAL_RATES, rates, strict=True):
        learned = {layer: map(interval, learned_rates[:, :, j].T) for j, layer in enumerate(LAYERS)}
        charts.lines(axes, range(len(SIZES)), learned, ylabel="learned rate", ylim=(0, 0.5))
        axes.set(title=f"learned from {initial_rate}", xlabel="training examples")
        axes.set(xticks=range(len(SIZES)), xticklabels=SIZES)
    return figure


if __name__ == "__main__":
    main(experiment, __doc__, __file__)
