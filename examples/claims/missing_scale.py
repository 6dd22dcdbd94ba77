"""What the missing scale does downstream.

Digits of 8 x 8, 900 to train on and 897 to test; an MLP of 128 ReLU units a hidden layer, Adam at
1e-3, 600 steps of 64. The seed decides the split, the weights, the batches and the masks.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from common import claim, data, nets
from common.claim import Finding, interval
from dropout_jax import dropout, dropout_unscaled, fold

RATES = (0.2, 0.5, 0.8)
BIASES = {"without biases": 0.0, "with biases": 1.0}


def bare(x, rate, *, key):
    """A mask without a scale, and nothing in its place at evaluation: the mistake."""
    return x if key is None else dropout_unscaled(x, rate, key=key)


def fit(split, seed, rate, steps, *, hidden=2, bias=1.0, drop=dropout):
    """Train; `bias` 0 holds the biases at 0."""

    def held(params):
        return [{**layer, "bias": layer["bias"] * bias} for layer in params]

    def loss(params, rows, key):
        logits = nets.mlp(held(params), split.x_train[rows], rate, key=key, drop=drop)
        return nets.cross_entropy(logits, split.y_train[rows])

    key = jax.random.key(seed)
    params = nets.mlp_init(fold(key, "weights"), (64, *[128] * hidden, 10))
    return held(nets.fit(loss, params, len(split.y_train), fold(key, "fit"), steps=steps))


def softmax(split, seed, bias, steps, hidden, drops=(dropout, bare)):
    """Entropy with the scale and without it, same masks at rate 0.5; share of the same argmax."""
    params = fit(split, seed, 0.5, steps, hidden=hidden, bias=bias)
    key = fold(jax.random.key(seed), "test")
    logits = [nets.mlp(params, split.x_test, 0.5, key=key, drop=drop) for drop in drops]
    logs = map(jax.nn.log_softmax, logits)
    entropies = [-(jnp.exp(log) * log).sum(-1).mean() for log in logs]
    return *entropies, (logits[0].argmax(-1) == logits[1].argmax(-1)).mean()


def evaluated(split, seed, rate, steps):
    """Trained with bare masks: accuracy and loss at evaluation, compensated and not."""
    params = fit(split, seed, rate, steps, drop=bare)
    for drop in (dropout_unscaled, bare):
        logits = nets.mlp(params, split.x_test, rate, key=None, drop=drop)
        yield nets.accuracy(logits, split.y_test)
        yield nets.cross_entropy(logits, split.y_test)


def cells(run, splits, values: dict, *args):
    """The measures of a run by a traced value's name, each with a number a seed: one program."""
    seeds = jnp.arange(len(splits.y_test), dtype=jnp.uint32)
    over_seeds = jax.vmap(lambda *x: tuple(run(*x, *args)), (0, 0, None))
    over_values = jax.jit(jax.vmap(over_seeds, (None, None, 0)))
    measures = over_values(splits, seeds, jnp.array([*values.values()]))
    return {name: [np.asarray(each[i]) for each in measures] for i, name in enumerate(values)}


def listed(intervals, form):
    """Intervals as text."""
    return "; ".join(f"{name}: {found:{form}}" for name, found in intervals.items())


def softmax_findings(softmaxes):
    """By network."""
    more = {name: interval(without - scaled) for name, (scaled, without, _) in softmaxes.items()}
    same = {name: interval(agree) for name, (*_, agree) in softmaxes.items()}
    stays = {name: found.low > 0.999 for name, found in same.items()}
    yield Finding(
        "Without the scale a softmax downstream is less sure: its entropy rises",
        "follows from the formula: smaller logits are a higher temperature",
        f"rise in nats, same masks at rate 0.5. {listed(more, '.3f')}",
        claim.verdict_by("the network has", {name: found.positive for name, found in more.items()}),
    )
    yield Finding(
        "Without the scale the softmax's argmax stays",
        "follows from the formula where logits are only made smaller",
        f"share of answers that stay (the claim: above 99.9%). {listed(same, '.2%')}",
        claim.verdict_by("the network has", stays),
    )


def evaluation_findings(evaluations):
    """By rate."""
    falls = {rate: interval(right - wrong) for rate, (right, _, wrong, _) in evaluations.items()}
    rises = {rate: interval(wrong - right) for rate, (_, right, _, wrong) in evaluations.items()}
    for what, changes, form in (("accuracy falls", falls, ".2%"), ("loss rises", rises, ".3f")):
        yield Finding(
            f"A network trained without the scale must be scaled at evaluation, or its {what}",
            "Srivastava et al., Dropout, JMLR 2014, section 4",
            f"difference on the test set to dropout_unscaled, which compensates, by rate. "
            f"{listed(changes, form)}",
            claim.verdict_by(
                "the rate is", {rate: each.positive for rate, each in changes.items()}
            ),
        )


def draw(softmaxes, evaluations):
    """Entropies, and accuracy and loss with and without compensation."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    short = {name.replace(" with", "\nwith"): found[:2] for name, found in softmaxes.items()}
    bars(panels[0], short)
    panels[0].tick_params(axis="x", labelsize=7.5)
    panels[0].set(title="softmax in training, rate 0.5", ylabel="entropy (nats)")
    panels[0].legend(["scaled", "not scaled"])
    for i, title in ((0, "test accuracy"), (1, "test loss (nats)")):
        bars(panels[i + 1], {rate: found[i::2] for rate, found in evaluations.items()})
        panels[i + 1].set(title="trained without the scale", ylabel=title, xlabel="rate")
    panels[1].set_ylim(0, 1.18)
    panels[1].legend(["evaluated with the kept share", "evaluated as it is"], loc="upper left")
    return figure


def bars(axes, groups):
    """Two bars a cell, the mean over seeds with its interval."""
    for i, colour in enumerate(("C0", "C3")):
        found = [interval(values[i]) for values in groups.values()]
        half = [each.high - each.mean for each in found]
        places = np.arange(len(groups)) + (i - 0.5) * 0.38
        axes.bar(places, [each.mean for each in found], 0.36, yerr=half, color=colour, capsize=3)
    axes.set_xticks(range(len(groups)), list(map(str, groups)))


def experiment(scale: claim.Scale) -> claim.Result:
    """A softmax in training, and a trained network at evaluation."""
    seeds, steps = scale.pick((3, 30), (10, 600), (30, 1200))
    splits = data.stacked(data.digits, range(seeds))
    softmaxes = {
        f"{hidden} hidden layer{'s' * (hidden > 1)} {name}": found
        for hidden in scale.track((1, 3), "softmax in training")
        for name, found in cells(softmax, splits, BIASES, steps, hidden).items()
    }
    evaluations = cells(evaluated, splits, {rate: rate for rate in RATES}, steps)
    findings = [*softmax_findings(softmaxes), *evaluation_findings(evaluations)]
    numbers = {"softmax": softmaxes, "evaluation": evaluations}
    return claim.Result(findings, draw(softmaxes, evaluations), numbers)


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
