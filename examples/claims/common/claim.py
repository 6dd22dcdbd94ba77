"""Common parts of the claims: size of a run, intervals over seeds, verdicts, JSON and picture.

A script of examples/claims covers one subject. Its experiment(scale) trains its models and returns
a Result: the findings, a figure, and the numbers behind both. Its last lines are

    if __name__ == "__main__":
        claim.main(experiment, __doc__, __file__)

which adds `--full`, `--smallest` and `--out`, and writes NAME.json and NAME.png. page.py writes
docs/claims.md and the pages of the chapters from them.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import scipy.stats
from matplotlib.figure import Figure
from rich.progress import track

HOLDS, FAILS = "holds", "does not hold"
ONLY_WHEN = "holds only when "
NEGLIGIBLE = 0.005  # of a difference in accuracy, where a claim is that there is none


class Interval(NamedTuple):
    """The mean over independent seeds, and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """`f"{x:.2f}"` is "0.91 (0.90 to 0.92)"; a % is written once."""
        mean, low, high = (format(value, spec) for value in self)
        return f"{mean} ({low.removesuffix('%')} to {high})"

    def __neg__(self) -> "Interval":
        """The interval of the negated value: of a fall, if this one is of a rise."""
        return Interval(-self.mean, -self.high, -self.low)

    def percent(self) -> "Interval":
        """The interval times 100: a share in per cent."""
        return Interval(*(100 * value for value in self))

    @property
    def positive(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0

    @property
    def negative(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high < 0


def interval(values) -> Interval:
    """Student's t interval of the mean of `values`, one per seed.

    For a paired comparison pass the differences seed by seed.
    """
    values = np.asarray(values, np.float64)
    mean, error = values.mean(), scipy.stats.sem(values)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * error
    return Interval(float(mean), float(mean - half), float(mean + half))


@dataclass(frozen=True)
class Cells:
    """The intervals of a finding by setting, for its chart."""

    what: str
    """the quantity"""
    values: dict[Any, Interval]
    spec: str
    """of the format of an interval"""
    bounds: tuple[float | None, float | None] = (0, None)
    """between which the claim wants each whole interval"""


@dataclass(frozen=True)
class Finding:
    """One claim, its measurement and its verdict."""

    claim: str
    """one sentence"""
    source: str
    """who makes the claim"""
    measured: str
    """one sentence, with the intervals"""
    verdict: str
    """HOLDS, FAILS, or ONLY_WHEN and a condition; code decides it from the numbers"""
    cells: Cells | None = None
    """None if settings are not compared with one interval each"""

    def __post_init__(self):
        if self.verdict not in (HOLDS, FAILS) and not self.verdict.startswith(ONLY_WHEN):
            allowed = "HOLDS, FAILS, or ONLY_WHEN and a condition"
            raise ValueError(f"verdict={self.verdict!r} is not allowed: use {allowed}.")


class Result(NamedTuple):
    """The result of an experiment."""

    findings: list[Finding]
    figure: Figure
    numbers: dict[str, Any]
    """for the JSON; may contain arrays and intervals"""


@dataclass(frozen=True)
class Scale:
    """The size of a run: smallest for tests, full for several hours."""

    name: Literal["smallest", "default", "full"]

    def pick(self, smallest, default, full):
        """The value for this scale."""
        return {"smallest": smallest, "default": default, "full": full}[self.name]

    def track(self, jobs: Iterable, what: str) -> Iterator:
        """Iterate over the jobs with a progress bar."""
        jobs = list(jobs)
        return iter(track(jobs, f"{what}", disable=self.name == "smallest"))


def verdict(holds: bool) -> str:
    """HOLDS or FAILS."""
    return HOLDS if holds else FAILS


def verdict_by(what: str, cells: dict) -> str:
    """HOLDS if every cell holds, FAILS if none does, else ONLY_WHEN with `what` and the cells.

    `cells` has for each setting a bool, or an interval of a difference that should be above 0:
    verdict_by("the rate is", {0.1: False, 0.5: True}).
    """
    cells = {
        name: cell.positive if isinstance(cell, Interval) else cell for name, cell in cells.items()
    }
    holding_cells = [str(name) for name, holds in cells.items() if holds]
    if len(holding_cells) in (0, len(cells)):
        return verdict(bool(holding_cells))
    holding = " or ".join(filter(None, [", ".join(holding_cells[:-1]), holding_cells[-1]]))
    failing_cells = ", ".join(str(name) for name, holds in cells.items() if not holds)
    return f"{ONLY_WHEN}{what} {holding} (not {failing_cells})"


def describe(cells: Mapping[Any, Any], spec: str) -> str:
    """Describe cells in a sentence: "0.1: 2 (1 to 3), 0.2: 4 (3 to 5)"."""
    return ", ".join(f"{name}: {format(cell, spec)}" for name, cell in cells.items())


def is_between(value: Interval, bounds: tuple[float | None, float | None]) -> bool:
    """Whether the whole interval lies between the bounds; None is no bound."""
    low, high = bounds
    return (low is None or value.low > low) and (high is None or value.high < high)


def by_bounds(
    text: str,
    source: str,
    what: str,
    cells: dict[Any, Interval],
    condition: str,
    spec: str,
    bounds: tuple[float | None, float | None],
) -> Finding:
    """The finding for a claim that the interval of every cell lies between the bounds."""
    outcome = verdict_by(condition, {name: is_between(x, bounds) for name, x in cells.items()})
    measured = f"{what}: {describe(cells, spec)}"
    return Finding(text, source, measured, outcome, Cells(what, cells, spec, bounds))


def by_cell(
    text: str,
    source: str,
    what: str,
    cells: dict[Any, Interval],
    condition: str,
    spec: str = "+.3f",
    sign: int = 1,
) -> Finding:
    """The finding for a claim that a difference is above 0 in every cell (below for sign=-1)."""
    bounds = (0, None) if sign > 0 else (None, 0)
    return by_bounds(text, source, what, cells, condition, spec, bounds)


def compare(sentence, source, ours: dict, theirs: dict, what: str, condition: str) -> Finding:
    """The finding for a claim that accuracies by cell and seed exceed others, in points."""
    gains = {cell: interval(100 * (ours[cell] - theirs[cell])) for cell in ours}
    return by_cell(sentence, source, what, gains, condition, "+.1f")


def main(experiment, doc: str | None, file: str, arguments=None) -> Path:
    """The command line of a claim's script; returns the JSON's path."""
    title = (doc or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=title)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="the long form")
    size.add_argument(
        "--smallest", action="store_true", help="a few seconds, to check that it runs"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/claims"), help="folder of results")
    options = parser.parse_args(arguments)
    name = "full" if options.full else "smallest" if options.smallest else "default"
    result = experiment(Scale(name))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{Path(file).stem}.json"
    result.figure.savefig(path.with_suffix(".png"), dpi=110)
    record = {
        "title": title.removesuffix("."),
        "scale": name,
        "versions": {"jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
        "findings": to_json([dataclasses.asdict(finding) for finding in result.findings]),
        "numbers": to_json(result.numbers),
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    for finding in result.findings:
        print(f"{finding.claim}\n  {finding.measured}\n  {finding.verdict}")
    print(f"wrote {path} and {path.with_suffix('.png')}")
    return path


def to_json(value: Any) -> Any:
    """Convert to JSON's types: numbers with six digits, keys as strings."""
    if isinstance(value, Interval):
        return {"mean": to_json(value.mean), "95 %": [to_json(value.low), to_json(value.high)]}
    if isinstance(value, dict):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return to_json(np.asarray(value).tolist())
    return float(f"{value:.6g}") if isinstance(value, float) else value


def intervals(values, names: Iterable) -> dict[Any, Interval]:
    """Intervals over the first axis (seeds), one for each name of the second axis."""
    return {name: interval(column) for name, column in zip(names, values.T, strict=True)}


def zero_crossing(x, gains) -> float | None:
    """The x after which gains stay at or below 0, interpolated on a logarithmic scale.

    None if the gain is positive at the largest x, or at no x.
    """
    positive = np.flatnonzero(np.asarray(gains) > 0)
    if len(positive) == 0 or positive[-1] == len(x) - 1:
        return None
    i = positive[-1]
    share = gains[i] / (gains[i] - gains[i + 1])
    return float(np.exp(np.log(x[i]) + share * np.log(x[i + 1] / x[i])))
