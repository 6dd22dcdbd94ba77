"""Step time: what dropout adds to the time of a training step.

This script measures nothing. It reads benchmarks/results/train_step-cpu.json, the results of
benchmarks/bench_train_step.py on minigpt's presets, for minigpt and the same model in PyTorch, at
dropout rate 0.2 and at 0: medians of 15 rounds. The interval is that of the median with dropout
from its quartiles, 1.57 IQR / sqrt(15) to either side (McGill et al., "Variations of box plots",
1978), over the median without. So there is no seed, and every form of this script is the same.
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim
from common.claim import Finding, Interval, Result, by_bounds

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "results" / "train_step-cpu.json"
PRESETS = ("shakespeare-char-cpu", "shakespeare-char")
GOODFELLOW = "Goodfellow et al., Deep Learning, 2016, section 7.12, who say cheap without a figure"


def experiment(_: claim.Scale) -> Result:
    times = step_times(json.loads(BENCHMARK.read_text()))
    return Result(findings(times), picture(times), {"time of a step, as a ratio": times})


def step_times(benchmark) -> dict[str, Interval]:
    """By framework and preset: a step with dropout over one without."""
    quartiles = {
        (row["framework"], row["model"], row["dropout"]): row["to_minigpt_without_dropout"]
        for row in benchmark["rows"]
        if row["model"] in PRESETS
    }
    times = {}
    for (framework, preset, rate), (lower, median, upper) in quartiles.items():
        if rate:
            half = 1.57 * (upper - lower) / np.sqrt(15)
            _, without, _ = quartiles[framework, preset, 0.0]
            values = (median / without, (median - half) / without, (median + half) / without)
            times[f"{framework} on {preset}"] = Interval(*values)
    return times


def findings(times) -> list[Finding]:
    """Whether dropout is cheap in every case."""
    return [
        by_bounds(
            "Dropout is cheap to compute: it adds less than a tenth to a step",
            GOODFELLOW,
            "ratio of a step's time at rate 0.2 to that at 0, on a CPU",
            times,
            "it is",
            ".2f",
            (None, 1.1),
        )
    ]


def picture(times) -> Figure:
    """The additional time of a step with dropout."""
    figure, (axes,) = charts.panels(8, height=3)
    more = {name: Interval(*(100 * (end - 1) for end in ratio)) for name, ratio in times.items()}
    charts.forest(axes, more, xlabel="time that dropout at rate 0.2 adds to a step, %")
    axes.axvline(10, color="gray", linestyle=":", label="the claim's tenth")
    axes.legend()
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
