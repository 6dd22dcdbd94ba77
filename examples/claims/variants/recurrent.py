"""Dropout on an LSTM's recurrent state: naive, locked, and what is remembered.

The task (common/memory.py): one of eight random symbols at each of 24 steps, one of them marked; at
the end the model predicts the marked symbol. Every training step has fresh data, so the task
measures only memory. An LSTM of 32 units; Adam at 1e-2 falling to 0, 500 steps of 32, rate 0.5.
Tested on 2,000 sequences, with dropout off and on. (With rate 0.25 and 16 steps, tried first, every
kind remembered everything.) The seed decides weights, data and masks; differences are taken seed by
seed.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts
from common.claim import Finding, Result, Scale, compare, interval, main
from common.memory import LENGTH, SYMBOLS, lstm, train
from dropout_jax import dropout, fold, locked_dropout

RATE = 0.5
BINS = {"1 to 4": slice(0, 4), "5 to 8": slice(4, 8), "9 to 24": slice(8, 24)}
ZAREMBA = "Zaremba, Sutskever and Vinyals, Recurrent neural network regularization, 2014"
GAL = "Gal and Ghahramani, Dropout in recurrent neural networks, NeurIPS 2016"


def experiment(scale: Scale) -> Result:
    off, on = train_kinds(scale, KINDS)
    numbers = {"dropout off (seed, delay)": off, "dropout on": on}
    return Result(findings(off, on), picture(off, on), numbers)


def train_kinds(scale: Scale, kinds: dict) -> tuple[dict, dict]:
    """Train an LSTM with each kind; accuracy by seed and delay, with dropout off and on."""
    seeds, steps = scale.pick(3, 5, 10), scale.pick(3, 500, 2000)
    jobs = scale.track(kinds.items(), "kinds of dropout")
    accuracies = {kind: train(step, seeds, steps) for kind, step in jobs}
    off, on = ({kind: both[i] for kind, both in accuracies.items()} for i in (0, 1))
    return off, on


def naive(cell, x, h, c, *, now, **_):
    """The gates get h with a fresh mask at each step."""
    return lstm(cell, x, dropout(h, RATE, key=now), c)


def naive_both(cell, x, h, c, *, now, **_):
    """h and c get fresh masks at each step."""
    return naive(cell, x, h, dropout(c, RATE, key=fold(now, "c")), now=now)


def locked(cell, x, h, c, *, key, **_):
    """The gates get h with one mask for all steps: each step draws it from the same key."""
    return lstm(cell, x, locked_dropout(h[:, None], RATE, key=key)[:, 0], c)


KINDS = {"none": lstm, "naive, h": naive, "naive, h and c": naive_both, "locked": locked}


def findings(off, on) -> list[Finding]:
    """The naive kinds against no dropout, and locked against them."""
    h, c = "naive, h", "naive, h and c"
    training = (
        "With dropout on, as in training, locked dropout also remembers more than a fresh mask on h"
    )
    return [
        compare_recall(
            "A fresh mask at each step on h makes an LSTM forget", ZAREMBA, off, "none", h
        ),
        compare_recall(
            "A fresh mask at each step on h and c makes it forget", ZAREMBA, off, "none", c
        ),
        compare_recall(
            "Locked dropout remembers more than a fresh mask on h", GAL, off, "locked", h
        ),
        compare_recall(training, GAL, on, "locked", h),
        compare_recall(
            "Locked dropout remembers more than a fresh mask on h and c", GAL, off, "locked", c
        ),
    ]


def compare_recall(sentence: str, source: str, right, ours: str, theirs: str) -> Finding:
    """Whether one kind is more accurate than another, by the number of steps since the symbol."""
    one, other = (
        {name: right[kind][:, delays].mean(1) for name, delays in BINS.items()}
        for kind in (ours, theirs)
    )
    what = f"Points of accuracy, {ours} minus {theirs}, by steps ago"
    return compare(sentence, source, one, other, what, "the steps are")


def picture(off, on) -> Figure:
    """Accuracy against delay, by kind of dropout."""
    figure, panels = charts.panels(5, 5)
    for axes, mode, right in zip(panels, ("off", "on"), (off, on), strict=True):
        axes.axhline(100 / SYMBOLS, color="0.6", linestyle=":")
        shares = {kind: map(interval, 100 * of.T) for kind, of in right.items()}
        charts.lines(axes, range(1, LENGTH + 1), shares, ".-", spacing=0.15, ylim=(0, 105))
        axes.set(xlabel="steps since the symbol", title=f"tested with dropout {mode}")
    panels[0].set(ylabel="right answers, % (dotted: by chance)")
    panels[1].legend().remove()
    return figure


if __name__ == "__main__":
    main(experiment, __doc__, __file__)
