"""Calibration of a classifier: softmax, temperature, Laplace, MC dropout and deep ensembles.

MLPs of two hidden layers of 128 learn the digits 0 to 7 of MNIST from 2,400 images. 600 others fit
the temperature and choose the Laplace prior; about 1,000 are the test set, unchanged and rotated.
Adam at 1e-3, 1,200 steps of 32, no weight decay; MC dropout's networks have rate 0.5 on the hidden
layers. The networks of a seed share its split. Ensembles are of 5 networks that differ in initial
weights, batches and masks; the first of them is the network of the other rows.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

import out_of_distribution as ood
from common import charts, claim, measures
from common.claim import by_cell, describe, interval
from common.methods import COST, IN, MEMBERS, SHIFTED, run_digit_classifiers

GAL = "Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016"
ENSEMBLES = "Lakshminarayanan et al., NeurIPS 2017; Ovadia et al., NeurIPS 2019"
GUO = "Guo et al., On calibration of modern neural networks, ICML 2017"
OVADIA = "Ovadia et al., Can you trust your model's uncertainty?, NeurIPS 2019"
LEIBIG = "Leibig et al., Leveraging uncertainty information, Scientific Reports 2017"


def experiment(scale: claim.Scale) -> claim.Result:
    """Train, predict and compare, seed by seed."""
    runs, curves, fitted, passes = run_digit_classifiers(scale, IN, SHIFTED, *ood.SCORES.values())

    def columns(method: str) -> dict[str, str]:
        of_sets = ([run[method][where] for run in runs] for where in (IN, SHIFTED))
        quality = measures.columns(next(of_sets)) | measures.columns(next(of_sets), ", 30°")
        return quality | ood.columns(runs, method)

    numbers = {"table": measures.table(COST, passes, columns), "seeds": len(runs)}
    numbers |= {"fitted": fitted, "runs": runs, "reliability": curves}
    return claim.Result(findings(runs), picture(runs, curves), numbers)


def findings(runs: list[dict]) -> list[claim.Finding]:
    """The claims, each decided by differences seed by seed."""

    def decreases_of(worse, better, *names):
        """The decreases of the measures by the better method, on both sets."""
        return {
            f"{name} on {where}": cell
            for where in (IN, SHIFTED)
            for name, cell in measures.decreases(runs, worse, better, names, where).items()
        }

    calibration = decreases_of("softmax, dropout net", "MC dropout", "ECE", "NLL")
    ensembles = decreases_of("MC dropout", "ensemble", "NLL", "ECE", "Brier")
    of_dropout_nets = decreases_of("MC dropout", "ensemble, dropout nets", "NLL", "ECE", "Brier")
    gain = decreases_of("softmax", "temperature", "ECE")[f"ECE on {IN}"]
    warm = {where: [run["temperature"][where] for run in runs] for where in (IN, SHIFTED)}
    excess = {
        where: interval([each["ECE"] - each["ECE if right"] for each in of_runs])
        for where, of_runs in warm.items()
    }
    selective_gains = decreases_of("MC dropout", "softmax, dropout net", "selective")
    selective = {name.removeprefix("selective "): cell for name, cell in selective_gains.items()}
    return [
        by_cell(
            "MC dropout is better calibrated than the softmax of the same network",
            *(GAL, "Reduction by MC dropout", calibration, "measured by", ".3f"),
        ),
        by_cell(
            "Deep ensembles beat MC dropout",
            ENSEMBLES,
            f"Reduction by {MEMBERS} networks trained with dropout: "
            f"{describe(of_dropout_nets, '.3f')}; by {MEMBERS} trained without",
            *(ensembles, "measured by", ".3f"),
        ),
        claim.Finding(
            "Temperature scaling is enough for calibration in distribution",
            GUO,
            f"It lowers the ECE by {gain:.3f}; above the ECE that exactly right probabilities show "
            f"on as many images: {excess[IN]:.3f} (enough: the interval below 0.01).",
            claim.verdict(gain.positive and excess[IN].high < 0.01),
        ),
        claim.Finding(
            "A temperature fitted in distribution does not calibrate shifted data",
            OVADIA,
            f"On {SHIFTED} its ECE is above that of exactly right probabilities by "
            f"{excess[SHIFTED]:.3f} (calibrated: not above 0.01).",
            claim.verdict(excess[SHIFTED].low > 0.01),
        ),
        by_cell(
            "MC dropout selects the predictions to withhold better than softmax",
            LEIBIG,
            "Accuracy on the 80 % most confident, MC dropout minus the softmax of the same network",
            *(selective, "measured", ".2%"),
        ),
    ]


def picture(runs: list[dict], curves: list[dict]) -> Figure:
    """Reliability, and calibration with and without a shift."""
    figure, (left, right) = charts.panels(5, 7.5)
    drawn_methods = [method for method in COST if "dropout net" not in method]
    others = [method for method in COST if method not in drawn_methods]
    methods = [*drawn_methods, *others]  # a method's colour in both panels is by its position
    reliability = {method: [each[method] for each in curves] for method in drawn_methods}
    measures.draw_reliability(left, reliability, f"Reliability on the {IN}")
    ece = {
        where: {method: interval([run[method][where]["ECE"] for run in runs]) for method in methods}
        for where in (IN, SHIFTED)
    }
    charts.bars(right, ece, ylabel="expected calibration error", title="Calibration, and a shift")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
