"""Out-of-distribution detection: confidence and mutual information, by MC dropout and others.

The networks and methods are those of uncertainty.py: MLPs of two hidden layers of 128 trained on
the digits 0 to 7 of MNIST with 2,400 images, 1,200 steps of 32, at rate 0 or 0.5. A score, computed
without labels, should be higher for unknown images (8 and 9, digits rotated by 90 degrees, shuffled
pixels) than for about 1,000 test digits; AUROC is the share of pairs for which it is. A seed
decides the split, the networks and the masks.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, measures
from common.claim import by_cell, describe
from common.methods import UNKNOWN, run_digit_classifiers

SCORES = {"confidence": "by confidence", "information": "by mutual information"}
DRAWN = [(method, "confidence") for method in ("softmax", "softmax, dropout net", "MC dropout")]
DRAWN += [(method, "information") for method in ("MC dropout", "ensemble", "Laplace")]


def experiment(scale: claim.Scale) -> claim.Result:
    """Train, predict and compare, seed by seed; the table of uncertainty.py has every method."""
    runs, *_ = run_digit_classifiers(scale, *SCORES.values())
    return claim.Result(findings(runs), picture(runs), {"seeds": len(runs), "runs": runs})


def columns(runs: list[dict], method: str) -> dict[str, str]:
    """A table's columns of a method: the AUROC by both scores."""
    one_pass = method.startswith(("softmax", "temperature"))  # without mutual information
    scores = list(SCORES)[: 1 if one_pass else 2]
    aurocs = [{score: run[method][SCORES[score]] for score in scores} for run in runs]
    return measures.auroc_columns(aurocs, tuple(SCORES))


def auroc(runs: list[dict], method: str, score: str) -> list[dict[str, float]]:
    """By unknown set, for each seed."""
    return [{name: run[method][SCORES[score]][name] for name in UNKNOWN} for run in runs]


def gain(runs: list[dict], method: str) -> dict[str, claim.Interval]:
    """AUROC of MC dropout's mutual information minus that of a method's confidence."""
    information = auroc(runs, "MC dropout", "information")
    return measures.differences(information, auroc(runs, method, "confidence"))


def findings(runs: list[dict]) -> list[claim.Finding]:
    """The claim, decided by differences seed by seed."""
    return [
        by_cell(
            "Mutual information detects out-of-distribution inputs better than softmax confidence",
            "Gal, Uncertainty in deep learning, 2016; Smith and Gal, UAI 2018",
            "AUROC of MC dropout's mutual information minus that of its own confidence: "
            f"{describe(gain(runs, 'MC dropout'), '.3f')}; "
            "minus that of the same network's softmax",
            *(gain(runs, "softmax, dropout net"), "the unknown are", ".3f"),
        )
    ]


def picture(runs: list[dict]) -> Figure:
    """AUROC by unknown set and score, and what mutual information gains."""
    figure, (left, right) = charts.panels(8, 4.5)
    series = {", ".join(each): auroc(runs, *each) for each in DRAWN}
    measures.draw_auroc(left, series, "Telling the unknown from test digits")
    left.set_ylim(0.5, 1.0)
    cells = gain(runs, "softmax, dropout net")
    charts.forest(right, cells, xlabel="gain in AUROC", title="Information less softmax confidence")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
