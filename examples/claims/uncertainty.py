"""Uncertainty of a classifier: softmax, temperature, Laplace, MC dropout and deep ensembles.

MLPs of two hidden layers of 128 learn the digits 0 to 7 of MNIST from 2,400 images. 600 others fit
the temperature and choose the Laplace prior; 1,000 or so are the test; 8 and 9 are unknown. Adam at
1e-3, 1,200 steps of 32, no weight decay; MC dropout's networks have rate 0.5 on the hidden layers.
The networks of a seed share its split. Ensembles are of 5 networks that differ in initial weights,
batches and masks; the first of them is the network of the other rows.
"""

import jax
import numpy as np
from matplotlib.figure import Figure

from common import claim, measures
from common.methods import COST, IN, MEMBERS, SHIFTED, UNKNOWN, one_seed, split


def experiment(scale: claim.Scale) -> claim.Result:
    """Train, predict and compare, seed by seed."""
    seeds, size, rows = scale.pick((3, 200, 200), (5, 2400, 1000), (20, 2400, 1000))
    passes = scale.pick(4, 50, 100)
    runs, curves, chosen = [], [], []
    for seed in scale.track(range(seeds), "seeds"):
        *given, sets = split(seed, size, rows)
        settings = {"steps": scale.pick(40, 1200, 1200), "passes": passes}
        settings["width"] = scale.pick(8, 128, 128)
        found, p, fitted = one_seed(*given, sets, jax.random.key(seed), **settings)
        found = jax.tree.map(np.asarray, found)
        runs.append(
            {m: jax.tree.map(lambda leaf, i=i: float(leaf[i]), found) for i, m in enumerate(COST)}
        )
        curves.append({m: measures.reliability(p[i], given[2]) for i, m in enumerate(COST)})
        chosen.append({name: float(value) for name, value in fitted.items()})
    numbers = {"table": table_of(runs, passes), "seeds": seeds, "fitted": chosen, "runs": runs}
    numbers["reliability"] = curves
    return claim.Result(findings(runs), draw(runs, curves), numbers)


def table_of(runs: list[dict], passes: int) -> list[dict[str, str]]:
    """The table of methods: means over seeds."""

    def mean(method, where, what):
        return float(np.mean([run[method][where][what] for run in runs]))

    table = []
    for method, (trained, forward) in COST.items():
        row = {"method": method, "training runs": trained, "passes": forward.format(passes)}
        for where, name in ((IN, ""), (SHIFTED, ", 30°")):
            row[f"accuracy{name}"] = f"{mean(method, where, 'accuracy'):.1%}"
            row |= {f"{w}{name}": f"{mean(method, where, w):.3f}" for w in ("NLL", "ECE", "Brier")}
            row[f"accuracy at 80 %{name}"] = f"{mean(method, where, 'selective'):.1%}"
        for unknown in UNKNOWN:
            found = [
                mean(method, f"by {by}", unknown) for by in ("confidence", "mutual information")
            ]
            several = not method.startswith(("softmax", "temperature"))
            both = f"{found[0]:.3f}" + (f", {found[1]:.3f}" if several else "")
            row[f"AUROC, {unknown}: confidence, information"] = both
        table.append(row)
    return table


def findings(runs: list[dict]) -> list[claim.Finding]:
    """The claims, each decided by differences seed by seed."""

    def of(method, where):
        return [run[method][where] for run in runs]

    def less(worse, better, names, places=(IN, SHIFTED)):
        """How much lower the better method's measures are."""
        found = {
            where: measures.differences(of(worse, where), of(better, where)) for where in places
        }
        return {f"{name} on {where}": found[where][name] for where in places for name in names}

    def told(cells, form=".3f"):
        return "; ".join(f"{name} {cell:{form}}" for name, cell in cells.items())

    calibration = less("softmax, dropout net", "MC dropout", ("ECE", "NLL"))
    ensembles = less("MC dropout", "ensemble", ("NLL", "ECE", "Brier"))
    of_dropout_nets = less("MC dropout", "ensemble, dropout nets", ("NLL", "ECE", "Brier"))
    gain = less("softmax", "temperature", ("ECE",), (IN,))
    excess = {
        where: claim.interval([r["ECE"] - r["ECE if right"] for r in of("temperature", where)])
        for where in (IN, SHIFTED)
    }
    by_information = of("MC dropout", "by mutual information")
    unknown = measures.differences(by_information, of("softmax, dropout net", "by confidence"))
    same_passes = measures.differences(by_information, of("MC dropout", "by confidence"))
    held_back = less("MC dropout", "softmax, dropout net", ("selective",))
    selective = {name.removeprefix("selective "): cell for name, cell in held_back.items()}
    enough = gain[f"ECE on {IN}"].positive and excess[IN].high < 0.01
    return [
        claim.Finding(
            "MC dropout is better calibrated than the softmax of the same network.",
            "Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016",
            f"How much lower MC dropout is: {told(calibration)}.",
            claim.verdict_by("measured by", calibration),
        ),
        claim.Finding(
            "Deep ensembles beat MC dropout.",
            "Lakshminarayanan et al., NeurIPS 2017; Ovadia et al., NeurIPS 2019",
            f"How much lower the ensemble of {MEMBERS} is: {told(ensembles)}. One of networks "
            f"trained with dropout: {told(of_dropout_nets)}.",
            claim.verdict_by("measured by", ensembles),
        ),
        claim.Finding(
            "Temperature scaling is enough for calibration in distribution.",
            "Guo et al., On calibration of modern neural networks, ICML 2017",
            f"It lowers the ECE by {gain[f'ECE on {IN}']:.3f}; above the ECE that exactly right "
            f"probabilities show on as many images: {excess[IN]:.3f} (enough: the interval below "
            "0.01).",
            claim.verdict(enough),
        ),
        claim.Finding(
            "A temperature fitted in distribution does not calibrate what is shifted.",
            "Ovadia et al., Can you trust your model's uncertainty?, NeurIPS 2019",
            f"On {SHIFTED} its ECE is above that of exactly right probabilities by "
            f"{excess[SHIFTED]:.3f} (calibrated: not above 0.01).",
            claim.verdict(excess[SHIFTED].low > 0.01),
        ),
        claim.Finding(
            "Mutual information tells the unknown better than softmax confidence.",
            "Gal, Uncertainty in deep learning, 2016; Smith and Gal, UAI 2018",
            f"AUROC of MC dropout's mutual information less that of the same network's softmax: "
            f"{told(unknown)}. Less that of MC dropout's own confidence: {told(same_passes)}.",
            claim.verdict_by("the unknown are", unknown),
        ),
        claim.Finding(
            "MC dropout knows better than softmax which answers to hold back.",
            "Leibig et al., Leveraging uncertainty information from deep neural networks for "
            "disease detection, Scientific Reports 2017",
            "Accuracy on the 80 % most confident, MC dropout less the softmax of the same network: "
            f"{told(selective, '.2%')}.",
            claim.verdict_by("measured", selective),
        ),
    ]


def draw(runs: list[dict], curves: list[dict]) -> Figure:
    """Reliability, calibration with and without a shift, and detection of the unknown."""
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.15, 1))
    left.plot([0, 1], [0, 1], color="0.7", lw=1, label="exactly right")
    for method in ("softmax", "temperature", "Laplace", "ensemble", "MC dropout"):
        confidence, accuracy = np.mean([each[method] for each in curves], axis=0)
        left.plot(confidence, accuracy, "o-", ms=3.5, lw=1.2, label=method)
    low = min(min(each[m][0].min(), each[m][1].min()) for each in curves for m in COST)
    left.set(xlabel="confidence", ylabel="accuracy", title=f"Reliability on the {IN}")
    left.set(xlim=(max(low - 0.05, 0), 1.01), ylim=(max(low - 0.05, 0), 1.01))
    left.legend(frameon=False)
    place = np.arange(len(COST))
    for i, where in enumerate((IN, SHIFTED)):
        found = [claim.interval([run[m][where]["ECE"] for run in runs]) for m in COST]
        bars(middle, place + 0.36 * i - 0.18, found, where)
    middle.set(yticks=place, yticklabels=COST, xlabel="expected calibration error")
    middle.set(title="Calibration, and after a shift")
    scores = {
        "softmax": ("softmax", "by confidence"),
        "ensemble, confidence": ("ensemble", "by confidence"),
        "ensemble, information": ("ensemble", "by mutual information"),
        "softmax, dropout net": ("softmax, dropout net", "by confidence"),
        "MC dropout, confidence": ("MC dropout", "by confidence"),
        "MC dropout, information": ("MC dropout", "by mutual information"),
    }
    place = np.arange(len(scores))
    for i, unknown in enumerate(UNKNOWN):
        found = [claim.interval([run[m][by][unknown] for run in runs]) for m, by in scores.values()]
        bars(right, place + 0.27 * (i - 1), found, unknown, 0.25)
    right.set(yticks=place, yticklabels=scores, xlabel="AUROC", xlim=(0.5, 1))
    right.set(title="Telling the unknown from test digits")
    for axes in (middle, right):
        axes.invert_yaxis()
        spaced = {"columnspacing": 1, "handlelength": 1, "fontsize": 9}
        place = {"loc": "upper right", "bbox_to_anchor": (1, -0.12), "ncols": 3}
        axes.legend(frameon=False, **place, **spaced)
    return figure


def bars(axes, place, found: list[claim.Interval], label: str, height: float = 0.34):
    """Horizontal bars with intervals."""
    values = np.array(found)
    error = np.abs(values[:, 1:].T - values[:, 0])
    axes.barh(place, values[:, 0], height, xerr=error, label=label, error_kw={"lw": 0.8})


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
