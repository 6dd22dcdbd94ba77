"""A GPT and other kinds of text: which score distinguishes them from unseen plays.

The GPT of gpt_uncertainty.py: two layers of 64, rate 0.1, 600 steps on Shakespeare's plays. Windows
of 64 characters of unseen plays are compared with windows of this repository's Python, of Latin,
and of the same plays with words or letters shuffled, by the mean of each score over the window.
Characters that the plays do not have are removed. All sets have the same number of windows. MC
dropout has 20 passes; the softmax has dropout off. A seed decides weights, batches and masks.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, measures
from common.claim import describe
from common.gpt_methods import evaluate_gpts
from common.texts import KNOWN, UNKNOWN

SCORES = {
    "softmax, surprise": "surprise",
    "softmax, entropy": "entropy",
    "MC, surprise": "MC surprise",
    "MC, entropy": "MC entropy",
    "MC, mutual information": "information",
}


def experiment(scale: claim.Scale) -> claim.Result:
    """Train a GPT for each seed; AUROC of every score for every unknown text."""
    runs = []
    for outputs_by_text in evaluate_gpts(scale, (KNOWN, *UNKNOWN)):
        score_of = {
            text: {name: score.mean(1) for name, score in outputs.scores.items()}  # of a window
            for text, outputs in outputs_by_text.items()
        }
        auroc = {
            text: {
                name: float(measures.ood_auroc(score_of[KNOWN][name], score_of[text][name]))
                for name in SCORES.values()
            }
            for text in UNKNOWN
        }
        runs.append({"AUROC": auroc})
    return claim.Result(findings(runs), picture(runs), {"seeds": len(runs), "runs": runs})


def auroc_by_text(runs: list[dict], score: str) -> list[dict[str, float]]:
    """AUROC by unknown text, for each seed."""
    return [{text: run["AUROC"][text][score] for text in UNKNOWN} for run in runs]


def findings(runs: list[dict]) -> list[claim.Finding]:
    """The claim, decided by differences seed by seed."""
    surprise, entropy = (
        measures.differences(auroc_by_text(runs, "information"), auroc_by_text(runs, score))
        for score in ("surprise", "entropy")
    )
    best = {  # mutual information must exceed both
        text: min(surprise[text], entropy[text], key=lambda cell: cell.low) for text in UNKNOWN
    }
    return [
        claim.Finding(
            "Mutual information detects other kinds of text better than likelihood and entropy",
            "Malinin and Gales, Uncertainty estimation in autoregressive structured prediction, "
            "ICLR 2021 (of ensembles)",
            "AUROC per window of MC dropout's mutual information minus that of the softmax's "
            f"likelihood: {describe(surprise, '.3f')}; minus that of its entropy: "
            f"{describe(entropy, '.3f')}.",
            claim.verdict_by("the text is", best),
        )
    ]


def picture(runs: list[dict]) -> Figure:
    """Detection of the unknown texts."""
    figure, (axes,) = charts.panels(9)
    series = {label: auroc_by_text(runs, score) for label, score in SCORES.items()}
    measures.draw_auroc(axes, series, "Telling other texts from unseen plays, by windows of 64")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
