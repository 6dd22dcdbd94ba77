"""Alpha dropout in a SELU net of twenty layers.

Statistics: LeCun-normal weights, standard normal inputs, dropout after every layer; mean and
variance of a layer over rows and units. "Stays" means in the domain of Klambauer et al.'s
theorem 1 at every layer: means within 0.1, variances from 0.8 to 1.5. Learning: the same net on 300
of sklearn's digits, standardised, 600 steps of 32, Adam at 1e-3; tested on all other digits. The
seed decides weights, inputs or split, and masks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from common import charts, claim, data, nets
from dropout_jax import alpha_dropout, dropout, fold

DEPTH, RATES = 20, (0.05, 0.1, 0.2)
KINDS = {"alpha": alpha_dropout, "plain": dropout}
DOMAIN = {"mean": (-0.1, 0.1), "variance": (0.8, 1.5)}
SOURCE = "Klambauer et al., Self-normalizing neural networks, NeurIPS 2017"


def init(key, width: int):
    """LeCun's initial weights of the layers, stacked, and of a readout of ten classes."""
    weights = jax.random.normal(fold(key, "layers"), (DEPTH, width, width)) / jnp.sqrt(width)
    layers = {"weights": weights, "bias": jnp.zeros((DEPTH, width))}
    return {"layers": layers, "readout": nets.dense_init(fold(key, "readout"), width, 10)}


def net(params, x, rate, *, key, drop):
    """Logits, and the mean and variance of what every layer gives on."""

    def layer(x, inputs):
        i, weights = inputs
        x = drop(jax.nn.selu(nets.dense(weights, x)), rate, key=fold(key, "layer", i))
        return x, jnp.stack([x.mean(), x.var()])

    places = jnp.arange(DEPTH, dtype=jnp.uint32)
    x, statistics = jax.lax.scan(layer, x, (places, params["layers"]))
    return nets.dense(params["readout"], x), statistics


def statistics(drop, rates, seeds: int, width: int = 256, rows: int = 256):
    """At initialisation, as an array (rate, seed, layer, mean or variance)."""

    def one(rate, seed):
        key = jax.random.key(seed)
        x = jax.random.normal(fold(key, "x"), (rows, width))
        return net(init(key, width), x, rate, key=fold(key, "masks"), drop=drop)[1]

    of_rate = jax.vmap(one, (None, 0))
    program = jax.jit(jax.vmap(of_rate, (0, None)))
    return np.asarray(program(jnp.array(rates), jnp.arange(seeds)))


def stays(found) -> bool:
    """Whether at every layer the interval (over seeds) of each moment is in the domain."""
    return all(
        low <= interval.low and interval.high <= high
        for moment, (low, high) in enumerate(DOMAIN.values())
        for interval in map(claim.interval, found[:, :, moment].T)
    )


def accuracies(drop, rates, splits, steps: int):
    """Test accuracy after training, (rate, seed)."""

    def one(rate, seed, split):
        key = jax.random.key(seed)
        mean, deviation = split.x_train.mean(), split.x_train.std()
        x, x_test = ((x - mean) / deviation for x in (split.x_train, split.x_test))

        def loss(params, rows, key):
            logits = net(params, x[rows], rate, key=key, drop=drop)[0]
            return nets.cross_entropy(logits, split.y_train[rows])

        params = nets.fit(loss, init(key, 64), len(x), key, steps=steps, batch_size=32)
        return nets.accuracy(net(params, x_test, 0.0, key=None, drop=drop)[0], split.y_test)

    return nets.over_rates_and_seeds(one, rates, splits)


def experiment(scale: claim.Scale) -> claim.Result:
    """Moments by depth, and what training makes of them."""
    seeds, steps = scale.pick(3, 6, 10), scale.pick(5, 600, 2000)
    splits, rates = data.stacked(functools.partial(data.digits, 300), range(seeds)), (0.0, *RATES)
    rows = scale.pick(64, 256, 256)
    moments = {k: statistics(drop, rates, seeds, rows=rows) for k, drop in KINDS.items()}
    jobs = scale.track(KINDS.items(), "training")
    scores = {kind: accuracies(drop, rates, splits, steps) for kind, drop in jobs}
    none = {0: moments["alpha"][0]}
    alpha, plain = (dict(zip(RATES, moments[kind][1:], strict=True)) for kind in KINDS)
    ours, theirs = (dict(zip(RATES, scores[kind][1:], strict=True)) for kind in KINDS)
    findings = [
        kept(none, "SELU keeps mean 0 and variance 1 through twenty layers."),
        kept(alpha, "Alpha dropout keeps them, too."),
        kept(plain, "Plain dropout does not keep them.", keeps=False),
        claim.compare(
            "In a deep SELU net alpha dropout generalises better than plain of the same rate.",
            f"{SOURCE}; Keras docs of AlphaDropout",
            ours,
            theirs,
            f"Test accuracy without dropout {claim.interval(scores['alpha'][0]):.1%}. Points, "
            "alpha minus plain, by rate",
            "the rate is",
        ),
    ]
    means = {kind: of_kind.mean(1) for kind, of_kind in moments.items()}
    numbers = {"rates": rates, "moments (rate, layer, mean or variance)": means, "accuracy": scores}
    return claim.Result(findings, picture(moments, scores), numbers)


def kept(moments, sentence: str, keeps: bool = True) -> claim.Finding:
    """Whether mean and variance stay at each rate, as the sentence says (keeps) or denies."""
    last = {
        name: claim.listed({r: claim.interval(x[:, -1, i]) for r, x in moments.items()}, ".2f")
        for i, name in enumerate(DOMAIN)
    }
    return claim.Finding(
        sentence,
        SOURCE,
        f"After layer {DEPTH} by rate: mean {last['mean']}; variance {last['variance']}.",
        claim.verdict_by("the rate is", {r: stays(x) == keeps for r, x in moments.items()}),
    )


def picture(moments, scores) -> Figure:
    """Variance by depth, and accuracy by rate."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    layers = np.arange(1, DEPTH + 1)
    for kind, style in {"alpha": "-", "plain": "--"}.items():
        for i, (rate, found) in enumerate(zip((0, *RATES), moments[kind], strict=True)):
            if rate or kind == "alpha":
                label = f"{kind}, {rate}" if rate else "no dropout"
                left.plot(layers, found[:, :, 1].mean(0), style, color=f"C{i}", label=label)
        charts.points(right, (0, *RATES), map(claim.interval, scores[kind]), kind, f"o{style}")
    left.axhspan(*DOMAIN["variance"], color="0.9", label="the theorem's domain")
    left.set(xlabel="layer", ylabel="variance of activations", xticks=range(0, DEPTH + 1, 5))
    left.set(ylim=(0.7, 3.9))
    right.set(xlabel="dropout rate", ylabel="test accuracy after training", xticks=(0, *RATES))
    left.legend(fontsize=8, title="dropout, rate", ncols=2, loc="upper left")
    right.legend(title="dropout")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
