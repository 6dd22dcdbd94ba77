"""Weight scaling and the average of the sub-networks.

One softmax layer: 10 inputs, all 1,024 masks written out, in float64. Deep networks: digits of
8 x 8 (900 to train on, 897 to test), MLPs of 64 ReLU units a hidden layer with dropout 0.5 on each,
Adam at 1e-3, 1,000 steps of 64; "the average" is that over samples of their own. The seed decides
the split, the weights, the batches and the masks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from matplotlib.figure import Figure

from common import claim, data, nets
from common.claim import Finding, interval
from dropout_jax import apply_mask, fold, mc_dropout

RATES, DEPTHS = (0.2, 0.5, 0.8), (1, 2, 4)
FEW, ABOUT = 5, 50  # samples
HINTON = "Hinton et al., arXiv 1207.0580, 2012"
GOODFELLOW = "Goodfellow et al., Deep Learning, 2016, section 7.12"


def one_layer(seed, rate, inputs=10, apply=apply_mask):
    """Largest differences of weight scaling from the geometric and from the arithmetic mean."""
    rng = np.random.default_rng(seed)
    x, weights, bias = (rng.normal(size=size) for size in ((inputs,), (inputs, 5), (5,)))
    masks = (np.arange(2**inputs)[:, None] >> np.arange(inputs)) % 2 == 1
    kept = float(np.rint((1 - np.float32(rate)) * 2**16)) / 2**16  # the mask's own probability
    likely = (kept ** masks.sum(1) * (1 - kept) ** (~masks).sum(1))[:, None]
    with jax.enable_x64(True):
        dropped = np.asarray(apply(jnp.broadcast_to(x, masks.shape), masks, rate))
    logs = scipy.special.log_softmax(dropped @ weights + bias, axis=1)
    scaled = scipy.special.softmax(x @ weights + bias)
    geometric = scipy.special.softmax((likely * logs).sum(0))  # normalised
    arithmetic = (likely * np.exp(logs)).sum(0)
    return np.abs(scaled - geometric).max(), np.abs(scaled - arithmetic).max()


def predictions(split, seed, depth, steps, samples):
    """Log-probabilities of the test set: weight scaling's, and those of sampled sub-networks."""

    def loss(params, rows, key):
        logits = nets.mlp(params, split.x_train[rows], 0.5, key=key)
        return nets.cross_entropy(logits, split.y_train[rows])

    def predict(key):
        return jax.nn.log_softmax(nets.mlp(params, split.x_test, 0.5, key=key))

    key = jax.random.key(seed)
    params = nets.mlp_init(fold(key, "weights"), (64, *[64] * depth, 10))
    params = nets.fit(loss, params, len(split.y_train), fold(key, "fit"), steps=steps)
    return predict(None), mc_dropout(predict, fold(key, "samples"), samples, batch_size=20)


def measures(scaled, sampled, labels, counts):
    """Distances to the average, test error and log-loss: of weight scaling, of N samples."""
    own, rest = sampled[: max(counts)], sampled[max(counts) :]
    average = np.exp(rest).mean(0)
    geometric = scipy.special.softmax(rest.mean(0), axis=-1)
    means = [np.exp(own[:count]).mean(0) for count in counts]

    def to(other, p):
        return np.abs(p - other).sum(-1).mean() / 2  # total variation

    def error(p):
        return (p.argmax(-1) != labels).mean()

    def log_loss(p):
        return -np.log(np.take_along_axis(p, labels[:, None], 1)).mean()

    scaled = np.exp(scaled)
    return {
        "to the geometric mean": to(geometric, scaled),
        "distance": [to(average, p) for p in (scaled, *means)],
        "error": [error(p) for p in (scaled, *means)],
        "log-loss": [log_loss(p) for p in (scaled, *means)],
        "error of the average": error(average),
    }


def at_depth(splits, depth, steps, counts):
    """The measures of the seeds' networks, stacked: first axis the seed."""
    run = jax.jit(jax.vmap(lambda *x: predictions(*x, depth, steps, 3 * max(counts))))
    scaled, sampled = map(np.asarray, run(splits, jnp.arange(len(splits.y_test))))
    found = [measures(*x, counts) for x in zip(scaled, sampled, splits.y_test, strict=True)]
    return {name: np.array([each[name] for each in found]) for name in found[0]}


def exact_finding(exact):
    """All masks of one layer."""
    geometric, arithmetic = (max(each[i].max() for each in exact.values()) for i in (0, 1))
    return Finding(
        "For one softmax layer weight scaling is exactly the sub-networks' geometric mean",
        f"{HINTON}; Baldi and Sadowski, NeurIPS 2013; {GOODFELLOW}",
        f"all 1,024 masks, rates {', '.join(map(str, exact))}: at most {geometric:.1e} from the "
        f"normalised geometric mean, in float64 (the claim: below 1e-14); {arithmetic:.2f} from "
        "the arithmetic mean",
        claim.verdict(geometric < 1e-14),
    )


def deep_findings(deep, counts):
    """Deep networks, by depth."""
    where = "the number of hidden layers is"
    errors, distances = ({d: x[name].T for d, x in deep.items()} for name in ("error", "distance"))
    gap = {d: interval(errors[d][0] - x["error of the average"]) for d, x in deep.items()}
    nearer = {d: interval(distances[d][0] - x["to the geometric mean"]) for d, x in deep.items()}
    distance = {d: interval(scaled) for d, (scaled, *_) in distances.items()}
    grows = interval(distances[DEPTHS[-1]][0] - distances[DEPTHS[0]][0])
    few, about = (
        {d: interval(x[1 + counts.index(n)] - x[0]) for d, x in errors.items()}
        for n in (FEW, ABOUT)
    )
    many = {d: interval(x[-1] - x[0]) for d, x in errors.items()}
    loss = {d: interval(x["log-loss"][:, -1] - x["log-loss"][:, 0]) for d, x in deep.items()}
    as_good = {d: few[d].positive and near(about[d]) for d in deep}
    yield Finding(
        "In deep networks weight scaling predicts about as well as the sub-networks' average",
        f"Srivastava et al., JMLR 2014, section 7.5; {GOODFELLOW}",
        "test error of weight scaling less that of the average (the claim: within one point), by "
        "hidden layers: " + listed(gap, ".2%"),
        claim.verdict_by(where, {d: near(found) for d, found in gap.items()}),
    )
    yield Finding(
        "It is nearer to their geometric than to their arithmetic mean",
        f"{HINTON}; {GOODFELLOW}",
        "total variation to the arithmetic less that to the geometric mean, by hidden layers: "
        + listed(nearer, ".3f"),
        claim.verdict_by(where, {d: found.positive for d, found in nearer.items()}),
    )
    yield Finding(
        "The deeper the network, the further weight scaling is from the average",
        f"follows if it is exact for one layer only; {GOODFELLOW}",
        f"total variation to the average by hidden layers: {listed(distance, '.3f')}; from "
        f"{DEPTHS[0]} to {DEPTHS[-1]} it grows by {grows:.3f}",
        claim.verdict(grows.positive),
    )
    yield Finding(
        f"A few samples are worse than weight scaling, about {ABOUT} are as good",
        "Srivastava et al., JMLR 2014, section 7.5",
        f"test error less that of weight scaling, by hidden layers: {FEW} samples "
        f"{listed(few, '.2%')}; {ABOUT} samples {listed(about, '.2%')} (as good: within one point)",
        claim.verdict_by(where, as_good),
    )
    yield Finding(
        "With many more samples the average is a little better than weight scaling",
        "Srivastava et al., JMLR 2014, section 7.5, which adds: within a standard deviation",
        f"of {counts[-1]} samples less that of weight scaling, by hidden layers: test error "
        f"{listed(many, '.2%')}; test log-loss in nats {listed(loss, '.3f')}",
        claim.verdict_by(where, {d: found.negative for d, found in many.items()}),
    )


def near(found):
    """Whether a whole interval of differences in error is within one point."""
    return max(-found.low, found.high) < 0.01


def listed(cells, form):
    """Intervals as text."""
    return "; ".join(f"{name}: {found:{form}}" for name, found in cells.items())


def draw(exact, deep, counts):
    """The exact case, and samples against weight scaling."""
    figure = Figure(figsize=(14, 4.3), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(0.8, 1, 1))
    for i, (name, colour) in enumerate((("geometric", "C0"), ("arithmetic", "C3"))):
        heights = [each[i].max() for each in exact.values()]
        places = np.arange(len(exact)) + (i - 0.5) * 0.38
        panels[0].bar(places, np.maximum(heights, 1e-17), 0.36, color=colour, label=f"{name} mean")
    panels[0].set(
        yscale="log", ylim=(1e-17, 1e5), xlabel="rate", title="one softmax layer, all masks"
    )
    panels[0].set_ylabel("largest distance of weight scaling")
    panels[0].set_xticks(range(len(exact)), list(map(str, exact)))
    panels[0].legend(loc="upper left")
    names = {"distance": "total variation to the average", "log-loss": "test log-loss (nats)"}
    for panel, (name, label) in zip(panels[1:], names.items(), strict=True):
        for i, (depth, each) in enumerate(deep.items()):
            scaled, *sampled = each[name].mean(0)
            panel.plot(counts, sampled, "o-", c=f"C{i}", ms=3, label=f"{depth} hidden: samples")
            panel.axhline(scaled, color=f"C{i}", ls="--", label="weight scaling")
        panel.set(xscale="log", yscale="log", xlabel="Monte Carlo samples", ylabel=label)
        panel.set_title("deep networks, rate 0.5")
    panels[1].legend(fontsize=8, loc="lower left")
    return figure


def experiment(scale: claim.Scale) -> claim.Result:
    """One layer exactly, and deep ones by sampling."""
    seeds, steps, last = scale.pick((3, 20, 0), (5, 1000, 200), (20, 2000, 1000))
    counts = [n for n in (1, 2, FEW, 10, 20, ABOUT, 100, 200, 500, 1000) if n <= max(last, ABOUT)]
    splits = data.stacked(data.digits, range(seeds))
    exact = {r: np.array([one_layer(seed, r) for seed in range(seeds)]).T for r in RATES}
    deep = {d: at_depth(splits, d, steps, counts) for d in scale.track(DEPTHS, "depths")}
    findings = [exact_finding(exact), *deep_findings(deep, counts)]
    numbers = {"one layer": exact, "samples": counts, "deep": deep}
    return claim.Result(findings, draw(exact, deep, counts), numbers)


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
