"""Weight scaling of deep networks, and the average of their sub-networks.

Digits of 8 x 8 (900 to train on, 897 to test), MLPs of 1, 2 and 4 hidden layers of 64 ReLU units
with dropout 0.5 on each, Adam at 1e-3, 1,000 steps of 64, five seeds. The average is that of 400
sampled sub-networks; 200 others are for monte_carlo_samples.py. The seed decides the split, the
weights, the batches and the masks.
"""

import functools
import sys
from pathlib import Path

import jax
import numpy as np
import scipy.special

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data, nets
from common.claim import Finding, Result, by_bounds, by_cell, interval, verdict
from dropout_jax import fold, mc_dropout

DEPTHS = (1, 2, 4)
HINTON = "Hinton et al., arXiv 1207.0580, 2012"
GOODFELLOW = "Goodfellow et al., Deep Learning, 2016, section 7.12"
SRIVASTAVA = "Srivastava et al., JMLR 2014, section 7.5"
ONE_POINT = (-0.01, 0.01)  # of error: a smaller difference counts as none
WHERE = "the number of hidden layers is"


def experiment(scale: claim.Scale) -> Result:
    results = measure_by_depth(scale, measure_scaling)
    return Result(findings(results), picture(results), {"deep": results})


def measure_by_depth(scale: claim.Scale, measure) -> dict[int, dict[str, np.ndarray]]:
    """measure(scaled, own, rest, labels) for every seed's network, by depth.

    It gets log-probabilities: of weight scaling, and of two groups of samples.
    """
    seeds, steps, own = scale.pick((3, 20, 50), (5, 1000, 200), (20, 2000, 1000))
    splits, results = data.stack_splits(data.load_digits, range(seeds)), {}
    for depth in scale.track(DEPTHS, "depths"):
        settings = {"depth": depth, "steps": steps, "samples": 3 * own}
        run = jax.jit(jax.vmap(functools.partial(predict_with_samples, **settings)))
        scaled, sampled = map(np.asarray, run(splits, np.arange(seeds)))
        parts = scaled, sampled[:, :own], sampled[:, own:], splits.y_test
        predictions_by_seed = zip(*parts, strict=True)
        measured = [measure(*of_seed) for of_seed in predictions_by_seed]
        results[depth] = {name: np.array([seed[name] for seed in measured]) for name in measured[0]}
    return results


def predict_with_samples(split, seed, depth, steps, samples):
    """Log-probabilities of the test set: weight scaling's, and those of sampled sub-networks."""

    def predict(key):
        return jax.nn.log_softmax(nets.mlp(params, split.x_test, 0.5, key=key))

    params = nets.train_mlp(split, seed, 0.5, [64] * depth, steps=steps)
    drawn = fold(jax.random.key(seed), "samples")
    return predict(None), mc_dropout(predict, drawn, samples, batch_size=20)


def measure_scaling(scaled, _, sampled, labels) -> dict[str, float]:
    """Distances of weight scaling to both means, its test error and that of the average."""
    scaled, average = np.exp(scaled), np.exp(sampled).mean(0)
    geometric = scipy.special.softmax(sampled.mean(0), -1)
    return {
        "to the geometric mean": total_variation(geometric, scaled),
        "distance": total_variation(average, scaled),
        "error": (scaled.argmax(-1) != labels).mean(),
        "error of the average": (average.argmax(-1) != labels).mean(),
    }


def total_variation(p, q) -> float:
    """The mean total variation distance of two predictions."""
    return np.abs(p - q).sum(-1).mean() / 2


def findings(results) -> list[Finding]:
    gap = {d: interval(x["error"] - x["error of the average"]) for d, x in results.items()}
    nearer = {d: interval(x["distance"] - x["to the geometric mean"]) for d, x in results.items()}
    grows = interval(results[DEPTHS[-1]]["distance"] - results[DEPTHS[0]]["distance"])
    return [
        by_bounds(
            "In deep networks weight scaling predicts about as well as the sub-networks' average",
            f"{SRIVASTAVA}; {GOODFELLOW}",
            "test error of weight scaling minus that of the average (the claim: within one point), "
            "by hidden layers",
            gap,
            WHERE,
            ".2%",
            ONE_POINT,
        ),
        by_cell(
            "Weight scaling is nearer to the sub-networks' geometric than to their arithmetic mean",
            f"{HINTON}; {GOODFELLOW}",
            "total variation to the arithmetic minus that to the geometric mean, by hidden layers",
            nearer,
            WHERE,
        ),
        Finding(
            "The deeper the network, the further weight scaling is from the average",
            f"follows if it is exact for one layer only; {GOODFELLOW}",
            f"total variation, {DEPTHS[-1]} hidden layers minus {DEPTHS[0]}: {grows:+.3f}",
            verdict(grows.positive),
        ),
    ]


def picture(results):
    figure, panels = charts.panels(5, 5)
    errors = {"error": "weight scaling", "error of the average": "the average"}
    means = {"distance": "to the arithmetic mean", "to the geometric mean": "to the geometric mean"}
    labels = ("total variation of weight scaling", "test error")
    for axes, names, label in zip(panels, (means, errors), labels, strict=True):
        bars = {d: {names[name]: interval(x[name]) for name in names} for d, x in results.items()}
        charts.bars(axes, bars, xlabel="hidden layers", ylabel=label)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
