"""The moments of activations in a SELU net of twenty layers, with alpha dropout and with plain.

At initialisation: LeCun-normal weights, width 256, 256 rows of standard normal inputs, dropout
after every layer; mean and variance of a layer over rows and units. "Keeps" means in the domain of
Klambauer et al.'s theorem 1 at every layer: means within 0.1, variances from 0.8 to 1.5. The seed
decides weights, inputs and masks.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, nets
from common.claim import Finding, Result, Scale, describe, interval, main, verdict_by
from dropout_jax import alpha_dropout, dropout, fold

DEPTH, RATES = 20, (0.05, 0.1, 0.2)
KINDS = {"alpha": alpha_dropout, "plain": dropout}
DOMAIN = {"mean": (-0.1, 0.1), "variance": (0.8, 1.5)}
SOURCE = "Klambauer et al., Self-normalizing neural networks, NeurIPS 2017"


def experiment(scale: Scale) -> Result:
    """Moments by depth, with each kind at each rate and without."""
    seeds, rows = scale.pick(3, 6, 10), scale.pick(64, 256, 256)
    moments = {}
    for kind in scale.track(KINDS, "kinds of dropout"):
        statistics_by_rate = measure_moments(KINDS[kind], (0.0, *RATES), seeds, rows=rows)
        moments[kind] = dict(zip((0, *RATES), statistics_by_rate, strict=True))
    none = {0: moments["alpha"].pop(0)}
    del moments["plain"][0]
    results = [
        judge_moments(none, "SELU keeps mean 0 and variance 1 through twenty layers"),
        judge_moments(moments["alpha"], "Alpha dropout keeps them, too"),
        judge_moments(moments["plain"], "Plain dropout does not keep them", denied=True),
    ]
    moments = {"no dropout": none, **moments}
    numbers = {kind: {r: x.mean(0) for r, x in of.items()} for kind, of in moments.items()}
    name = "moments by rate (layer, mean or variance)"
    return Result(results, picture(moments), {name: numbers})


def measure_moments(drop, rates, seeds: int, width: int = 256, rows: int = 256):
    """At initialisation, as an array (rate, seed, layer, mean or variance)."""

    def one(rate, seed):
        key = jax.random.key(seed)
        x = jax.random.normal(fold(key, "x"), (rows, width))
        return net(init(key, width), x, rate, key=fold(key, "masks"), drop=drop)[1]

    of_rate = jax.vmap(one, (None, 0))
    program = jax.jit(jax.vmap(of_rate, (0, None)))
    return np.asarray(program(jnp.array(rates), jnp.arange(seeds)))


def init(key, width: int):
    """LeCun's initial weights: stacked layers, and a readout of ten classes."""
    weights = jax.random.normal(fold(key, "layers"), (DEPTH, width, width)) / jnp.sqrt(width)
    layers = {"weights": weights, "bias": jnp.zeros((DEPTH, width))}
    return {"layers": layers, "readout": nets.dense_init(fold(key, "readout"), width, 10)}


def net(params, x, rate, *, key, drop):
    """Logits, and the mean and variance of every layer's output."""

    def layer(x, inputs):
        i, weights = inputs
        x = drop(jax.nn.selu(nets.dense(weights, x)), rate, key=fold(key, "layer", i))
        return x, jnp.stack([x.mean(), x.var()])

    indices = jnp.arange(DEPTH, dtype=jnp.uint32)
    x, moments = jax.lax.scan(layer, x, (indices, params["layers"]))
    return nets.dense(params["readout"], x), moments


def judge_moments(moments, sentence: str, denied: bool = False) -> Finding:
    """Whether mean and variance stay in the domain at each rate, as claimed or denied."""
    last = {
        name: describe({rate: interval(x[:, -1, i]) for rate, x in moments.items()}, ".2f")
        for i, name in enumerate(DOMAIN)
    }
    return Finding(
        sentence,
        SOURCE,
        f"After layer {DEPTH} by rate: mean {last['mean']}; variance {last['variance']}.",
        verdict_by(
            "the rate is", {rate: within_domain(x) != denied for rate, x in moments.items()}
        ),
    )


def within_domain(statistics) -> bool:
    """Whether at every layer the interval (over seeds) of each moment is in the domain."""
    return all(
        low <= moment.low and moment.high <= high
        for i, (low, high) in enumerate(DOMAIN.values())
        for moment in map(interval, statistics[:, :, i].T)
    )


def picture(moments) -> Figure:
    """Variance by depth; the theorem's domain is grey."""
    figure, [axes] = charts.panels(7)
    variances = {
        f"{kind}, {rate}" if rate else kind: map(interval, statistics[:, :, 1].T)
        for kind, of_kind in moments.items()
        for rate, statistics in of_kind.items()
    }
    axes.axhspan(*DOMAIN["variance"], color="0.9")
    charts.lines(axes, range(1, DEPTH + 1), variances, ".-", xlabel="layer")
    axes.set(xticks=range(0, DEPTH + 1, 5))
    axes.set(ylabel="variance of activations (grey: the theorem's domain)")
    return figure


if __name__ == "__main__":
    main(experiment, __doc__, __file__)
