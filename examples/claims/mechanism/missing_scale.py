"""What the missing scale costs at evaluation.

Digits of 8 x 8, 900 to train on and 897 to test; an MLP of two hidden layers of 128 ReLU units with
dropout on each, Adam at 1e-3, 600 steps of 64, ten seeds. A seed decides the split, the weights,
the batches and the masks. The network is trained with masks without the scale. It is evaluated in
two ways: with activations times the kept share, as dropout_unscaled does, and unchanged.
"""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data, nets
from common.claim import Finding, Result, by_cell, interval
from dropout_jax import dropout_unscaled

RATES = (0.2, 0.5, 0.8)
SRIVASTAVA = "Srivastava et al., Dropout, JMLR 2014, section 4"


def experiment(scale: claim.Scale) -> Result:
    seeds, steps = scale.pick((3, 30), (10, 600), (30, 1200))
    splits = data.stack_splits(data.load_digits, range(seeds))
    run = functools.partial(train_and_evaluate, steps=steps)
    results = zip(*nets.run_rates_and_seeds(run, RATES, splits), strict=True)
    results = dict(zip(RATES, results, strict=True))
    falls = {r: interval(right - wrong).percent() for r, (right, _, wrong, _) in results.items()}
    return Result(findings(results, falls), picture(results, falls), {"evaluation": results})


def train_and_evaluate(rate, seed, split, *, steps):
    """Accuracy and loss on the test set: compensated, and not."""
    params = nets.train_mlp(split, seed, rate, (128, 128), steps=steps, drop=without_scale)
    measures = []
    for drop in (dropout_unscaled, without_scale):
        logits = nets.mlp(params, split.x_test, rate, key=None, drop=drop)
        measures += [nets.accuracy(logits, split.y_test), nets.cross_entropy(logits, split.y_test)]
    return tuple(measures)


def without_scale(x, rate, *, key):
    """A mask without the scale, and no change at evaluation: the mistake."""
    return x if key is None else dropout_unscaled(x, rate, key=key)


def findings(results, falls) -> list[Finding]:
    rises = {r: interval(wrong - right) for r, (_, right, _, wrong) in results.items()}
    must = "A network trained without the scale must be scaled at evaluation, or its"
    what = "evaluated as it is minus evaluated with the kept share"
    return [
        by_cell(
            f"{must} accuracy falls",
            SRIVASTAVA,
            f"fall of the test accuracy in points, {what}, by rate",
            falls,
            "the rate is",
            "+.2f",
        ),
        by_cell(
            f"{must} loss rises",
            SRIVASTAVA,
            f"rise of the test loss in nats, {what}, by rate",
            rises,
            "the rate is",
        ),
    ]


def picture(results, falls):
    figure, (left, right) = charts.panels(4.5, 4.5)
    losses = {
        rate: {"with the kept share": interval(kept), "as it is": interval(unscaled)}
        for rate, (_, kept, _, unscaled) in results.items()
    }
    fall = "test accuracy lost as it is (points)"
    charts.bars(
        left, {rate: {"": cell} for rate, cell in falls.items()}, xlabel="rate", ylabel=fall
    )
    charts.bars(right, losses, xlabel="rate", ylabel="test loss (nats)")
    figure.suptitle("trained without the scale, evaluated with the kept share or as it is")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
