"""Dropout in fine-tuning: the genre of a speech.

A GPT (two layers, 48 wide, 64 characters) is pretrained on 32 plays, all but the six of the test,
and becomes a classifier by minigpt.classify: comedy, history or tragedy, from the first 64
characters of a speech, without its speaker. A seed decides 2,000 training speeches, the head, the
batches and the masks; all rates share it, so differences are paired. Training plays, three others
for the validation (which stops training and chooses scikit-learn's C) and the six of the test have
no play in common; the validation's were in the pretraining. Losses are weighted for balance, and
tf-idf sees the same characters of the same speeches. The head reads the mean over the tokens, and
batches are of 32 at 2e-3: without dropout these did about best on the validation plays, of last and
mean, 16, 32 and 64, and 1e-3, 2e-3 and 3e-3 (the last token and batches of 16 did clearly worse).
Intervals are over seeds: they leave out the choice of plays and of the one body.
"""

import dataclasses

import numpy as np
from matplotlib.figure import Figure

from common import claim
from common.speech import TEST, pretrained, sample
from minigpt import baselines
from minigpt.classify import Body, fit
from minigpt.config import ClassifyConfig, OptimConfig
from minigpt.labelled import Split
from minigpt.scores import scores
from minigpt.speeches import genres

RATES = (0.0, 0.05, 0.1, 0.2, 0.3)
CELLS = [*((rate, 0.0) for rate in RATES), *((0.0, rate) for rate in RATES[1:]), (0.1, 0.1)]
SCRATCH, TFIDF, MAJORITY = "from scratch", "tf-idf + logistic regression", "majority class"
BERT = "Devlin et al., BERT, NAACL 2019: 0.1 everywhere, in fine-tuning as in pretraining"
ULMFIT = "Howard and Ruder, ULMFiT, ACL 2018"


def measure(data: Split, labels: list[str]) -> tuple[float, float]:
    """Accuracy and macro-F1 of labels given to the test."""
    found = scores(data.test.labels, labels, data.classes())
    return found.accuracy, found.macro_f1


def run(body: Body, data: Split, settings: ClassifyConfig) -> dict:
    """Every cell and baseline of one seed: (accuracy, macro-F1)."""
    found = {}
    for cell in CELLS:
        rates = dataclasses.replace(settings, head_dropout=cell[0], dropout=cell[1])
        found[cell] = measure(data, fit(body, data, rates).predict(data.test.texts))
    none = dataclasses.replace(settings, head_dropout=0.0, dropout=0.0)
    scratch = fit(body._replace(params=None), data, none)
    found[SCRATCH] = measure(data, scratch.predict(data.test.texts))
    found[TFIDF] = measure(data, baselines.tfidf(data, "balanced"))
    return found | {MAJORITY: measure(data, baselines.majority(data))}


def experiment(scale: claim.Scale) -> claim.Result:
    steps, seeds = scale.pick(6, 220, 800), scale.pick(2, 3, 5)
    sizes = scale.pick((60, 30, 60), (2000, 300, 1500), (8000, 1800, 4000))
    optim = OptimConfig(2e-3, 2e-4, warmup_steps=steps // 10)
    body, data = pretrained(scale.pick(6, 1000, 6000)), genres(test=TEST)
    runs = []
    for seed in scale.track(range(seeds), "genre of a speech"):
        settings = ClassifyConfig(
            seed=seed, steps=steps, batch_size=32, eval_every=max(steps // 4, 1), optim=optim
        )
        settings = dataclasses.replace(settings, class_weights="balanced", pool="mean")
        runs.append(run(body, sample(data, seed, sizes), settings))
    table = {name: np.array([found[name] for found in runs]) for name in runs[0]}
    return claim.Result(findings(table), figure(table), {"table": rows(table)})


def rows(table: dict) -> list[dict[str, str]]:
    """Every cell's accuracy and macro-F1, with their intervals."""
    found = {cell: [f"{claim.interval(each):.3f}" for each in v.T] for cell, v in table.items()}
    return [
        {"classifier": named(cell), "accuracy": accuracy, "macro-F1": f1}
        for cell, (accuracy, f1) in found.items()
    ]


def named(cell) -> str:
    """Of a cell: its rates, or the baseline's name."""
    return cell if isinstance(cell, str) else f"GPT, head {cell[0]:g}, body {cell[1]:g}"


def findings(table: dict) -> list[claim.Finding]:
    """Differences in macro-F1, seed by seed."""

    def found(text: str, source: str, one, other) -> claim.Finding:
        f1 = {cell: values[:, 1] for cell, values in table.items()}
        gain = claim.interval(f1[one] - f1[other])
        levels = [claim.interval(f1[cell]) for cell in (one, other)]
        measured = (
            f"macro-F1 {levels[0]:.3f} ({named(one)}) against {levels[1]:.3f} ({named(other)}); "
            f"difference {gain:+.3f}"
        )
        return claim.Finding(text, source, measured, claim.verdict(gain.positive))

    plain = (0.0, 0.0)
    return [
        found("Dropout 0.1 in the head helps fine-tuning", BERT, (0.1, 0.0), plain),
        found("Dropout 0.1 in the body helps fine-tuning", BERT, (0.0, 0.1), plain),
        found("Dropout 0.1 in head and body helps fine-tuning", BERT, (0.1, 0.1), plain),
        found("A pretrained body beats training from scratch", ULMFIT, plain, SCRATCH),
        found("Fine-tuning a small GPT beats tf-idf", f"{ULMFIT}, of its peers", plain, TFIDF),
    ]


def figure(table: dict) -> Figure:
    """Macro-F1 by rate in the head and in the body, and the baselines."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=(1, 1))
    f1 = {cell: claim.interval(values[:, 1]) for cell, values in table.items()}

    def points(axes, places, cells, **style):
        mean, low, high = np.array([f1[cell] for cell in cells]).T
        axes.errorbar(places, mean, (mean - low, high - mean), capsize=3, **style)

    points(left, np.array(RATES) - 0.003, [(rate, 0.0) for rate in RATES], fmt="o-", label="head")
    points(left, np.array(RATES) + 0.003, [(0.0, rate) for rate in RATES], fmt="s-", label="body")
    points(left, [0.108], [(0.1, 0.1)], fmt="^", color="black", label="both")
    left.set(xlabel="dropout rate", ylabel="macro-F1 of the test plays", title="Fine-tuning")
    left.margins(y=0.2)
    left.legend(frameon=False, ncols=3, loc="upper center")
    others = [(0.0, 0.0), SCRATCH, TFIDF, MAJORITY]
    labels = ["pretrained\nGPT", "GPT from\nscratch", "tf-idf,\nlogistic r.", "majority\nclass"]
    points(right, range(4), others, fmt="o", color="tab:green")
    right.set_xticks(range(4), labels)
    right.set(ylabel="macro-F1 of the test plays", title="Without dropout, and the baselines")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return drawn


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
