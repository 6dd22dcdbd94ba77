"""Dropout in fine-tuning: rates in the head.

The classifier of a speech's genre is that of genre.py: a GPT (two layers, 48 wide, 64 characters)
pretrained on 32 plays, fine-tuned on 2,000 speeches by minigpt.tasks.classification, and tested on
1,500 speeches of six unseen plays. The head has dropout on its input and its hidden layer. A seed
decides the training speeches, the head's weights, the batches and the masks, for all rates, so
differences are paired. Training runs to its last step; no validation chooses a step. Learning rate
and steps were chosen without dropout, see genre.py. A first version had three seeds and the best of
four evaluations: every interval contained 0. A second had seven seeds at 0.1 and 0.3: 0.3 in the
body lost 0.06 (0.00 to 0.12), and every other interval contained 0.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim
from common.claim import Finding, Interval, Result, by_cell, interval
from common.speech import TEST, fine_tune_config, pretrain, sample, score_labels, table_rows
from minigpt.tasks.classification import fit, load_genres

RATES = (0.05, 0.1, 0.2, 0.3)
NONE = "no dropout"
BERT = "Devlin et al., BERT, NAACL 2019: 0.1 everywhere, in fine-tuning as in pretraining"


def experiment(scale: claim.Scale) -> Result:
    return compare_rates(scale, "head", {str(rate): (rate, 0.0) for rate in RATES})


def compare_rates(scale: claim.Scale, part: str, cells: dict[str, tuple[float, float]]) -> Result:
    """Compare cells, each a rate in the head and one in the body, with no dropout."""
    steps, seeds = scale.pick(6, 200, 800), scale.pick(2, 5, 8)
    sizes = scale.pick((60, 30, 60), (2000, 300, 1500), (8000, 300, 4000))
    body, data = pretrain(scale.pick(6, 1000, 6000)), load_genres(test=TEST)
    cells = {NONE: (0.0, 0.0), **cells}
    runs = {name: [] for name in cells}
    jobs = [(seed, name) for seed in range(seeds) for name in cells]
    for seed, name in scale.track(jobs, f"rates in the {part}"):
        subset = sample(data, seed, sizes)
        trained = fit(body, subset, fine_tune_config(seed, steps, *cells[name]))
        runs[name].append(score_labels(subset, trained.predict(subset.test.texts)))
    scores = {
        name: {what: np.array([run[what] for run in each]) for what in each[0]}
        for name, each in runs.items()
    }
    gained = {what: gains(scores, what) for what in scores[NONE]}
    numbers = {"table": table_rows(scores), "gained": gained}
    return Result(findings(part, gained["macro-F1"]), picture(part, gained), numbers)


def gains(scores: dict, what: str) -> dict[str, Interval]:
    """The gain of each cell over no dropout, paired by seed."""
    cells = {name: values[what] - scores[NONE][what] for name, values in scores.items()}
    return {name: interval(values) for name, values in cells.items() if name != NONE}


def findings(part: str, gained: dict[str, Interval]) -> list[Finding]:
    text = f"Dropout in the {part} helps fine-tuning"
    what = "macro-F1 minus that without dropout, by rate"
    return [by_cell(text, BERT, what, gained, "the rate is")]


def picture(part: str, gained: dict[str, dict[str, Interval]]) -> Figure:
    """The gain in macro-F1 and accuracy, by cell."""
    figure, panels = charts.panels(5, 5)
    for axes, (what, cells) in zip(panels, gained.items(), strict=True):
        charts.forest(axes, cells, xlabel=f"{what} gained over no dropout")
    panels[0].set_ylabel(f"rate in the {part}")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
