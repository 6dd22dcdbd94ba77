"""Dropout in fine-tuning: rates in the head and in the body.

The classifier of a speech's genre is that of genre.py: a GPT (two layers, 48 wide, 64 characters)
that has read 32 plays, fine-tuned on 2,000 speeches by minigpt.classify, and tested on 1,500 of six
plays that it has not seen. The head drops its input and its hidden layer, the body at nanoGPT's
four sites. A seed decides the training speeches, the head's weights, the batches and the masks; all
rates share it, so differences are paired. Training goes to its last step: no validation chooses.
Learning rate and steps were chosen without dropout, see genre.py. A first form had rates of 0.05 to
0.3, but three seeds only and the best of four looks: no interval was without 0.
"""

import numpy as np
from matplotlib.figure import Figure

from common import charts, claim
from common.claim import Finding, Interval, Result, by_cell, interval, verdict
from common.speech import TEST, measure, pretrained, rows, sample, settings
from minigpt.classify import fit
from minigpt.speeches import genres

RATES = (0.1, 0.3)
NONE, BOTH = (0.0, 0.0), (0.1, 0.1)  # a cell is a rate in the head and one in the body
PLACES = {"head": [(rate, 0.0) for rate in RATES], "body": [(0.0, rate) for rate in RATES]}
CELLS = (NONE, *PLACES["head"], *PLACES["body"], BOTH)
BERT = "Devlin et al., BERT, NAACL 2019: 0.1 everywhere, in fine-tuning as in pretraining"


def experiment(scale: claim.Scale) -> Result:
    steps, seeds = scale.pick(6, 200, 800), scale.pick(2, 7, 8)
    sizes = scale.pick((60, 30, 60), (2000, 300, 1500), (8000, 300, 4000))
    body, data = pretrained(scale.pick(6, 1000, 6000)), genres(test=TEST)
    runs = {cell: [] for cell in CELLS}
    jobs = [(seed, cell) for seed in range(seeds) for cell in CELLS]
    for seed, cell in scale.track(jobs, "rates of dropout"):
        part = sample(data, seed, sizes)
        trained = fit(body, part, settings(seed, steps, *cell))
        runs[cell].append(measure(part, trained.predict(part.test.texts)))
    found = {
        cell: {what: np.array([run[what] for run in each]) for what in each[0]}
        for cell, each in runs.items()
    }
    gained = {what: gains(found, what) for what in found[NONE]}
    names = {cell: f"GPT, head {cell[0]:g}, body {cell[1]:g}" for cell in CELLS}
    numbers = {
        "table": rows({names[cell]: each for cell, each in found.items()}),
        "gained by (head, body)": gained,
    }
    return Result(findings(gained["macro-F1"]), picture(gained), numbers)


def gains(found: dict, what: str) -> dict[tuple, Interval]:
    """By cell, over no dropout, seed by seed."""
    cells = {cell: values[what] - found[NONE][what] for cell, values in found.items()}
    return {cell: interval(values) for cell, values in cells.items() if cell != NONE}


def findings(gained: dict[tuple, Interval]) -> list[Finding]:
    """Differences in macro-F1."""
    what, both = "macro-F1 over that without dropout", gained[BOTH]
    head, body = (
        {rate: gained[cell] for rate, cell in zip(RATES, cells, strict=True)}
        for cells in PLACES.values()
    )
    return [
        by_cell("Dropout in the head helps fine-tuning", BERT, what, head, "the rate is"),
        by_cell("Dropout in the body helps fine-tuning", BERT, what, body, "the rate is"),
        Finding(
            "Dropout 0.1 in head and body helps fine-tuning",
            BERT,
            f"{what}: {both:+.3f}",
            verdict(both.positive),
        ),
    ]


def picture(gained: dict[str, dict[tuple, Interval]]) -> Figure:
    """What macro-F1 and accuracy gain, by cell."""
    figure, panels = charts.panels(5, 5)
    for axes, (what, cells) in zip(panels, gained.items(), strict=True):
        rows_of = {f"head {cell[0]:g}, body {cell[1]:g}": each for cell, each in cells.items()}
        charts.forest(axes, rows_of, xlabel=f"{what} gained over no dropout")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
