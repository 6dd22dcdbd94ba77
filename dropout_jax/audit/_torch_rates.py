"""The rates of a PyTorch model: whether what is asked is what acts (D01, D09), and where (D02)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from dropout_jax import _validation
from dropout_jax.audit._findings import Finding, Severity
from dropout_jax.audit._locations import Location
from dropout_jax.audit._one_run import DROPS
from dropout_jax.audit._record import Record, Site
from dropout_jax.audit._torch_frames import clean_path, locate_assignment
from dropout_jax.audit._torch_record import BUFFER
from dropout_jax.audit._torch_run import Run, Runner
from dropout_jax.audit._torch_state import keep_state

_OWN = {
    (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d): "p",
    (nn.AlphaDropout, nn.FeatureAlphaDropout): "p",
    (nn.MultiheadAttention, nn.RNNBase): "dropout",
}
_KEEPS = ("keep", "keep_prob", "keep_rate", "p_keep", "keep_p")
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)
LOW, HIGH, WIDTH = 0.2, 0.5, 0.2  # the rates that are set: from 0.2 to 0.4, and 0.3 higher
EXACT = 1e-4  # how far a known probability may be from that of a rate


@dataclasses.dataclass(frozen=True)
class Rate:
    """A rate of dropout that a module holds.

    Args:
      path: of the module.
      attribute: the name of the rate.
      value: the probability of dropping.
      is_keep: whether the attribute is the probability of keeping.
      module: that holds it.
      is_layer: whether the module does nothing but drop.
    """

    path: str
    attribute: str
    value: float
    is_keep: bool
    module: nn.Module
    is_layer: bool

    def __str__(self) -> str:
        return f"{self.path}.{self.attribute}".lstrip(".")


def list_rates(model: nn.Module) -> list[Rate]:
    """Return the rates above 0 that the modules of a model hold as numbers."""
    rates = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        own = next((name for kinds, name in _OWN.items() if isinstance(module, kinds)), None)
        is_layer = own == "p" or "drop" in type(module).__name__.lower()
        for name, value in vars(module).items():
            is_rate = name == own if own else _is_name_of_rate(name, is_layer=is_layer)
            is_keep = "keep" in name.lower()
            if is_rate and isinstance(value, float) and 0 < value <= 1 and value != is_keep:
                rate = 1 - value if is_keep else value
                rates.append(Rate(clean_path(path), name, rate, is_keep, module, is_layer))
    return rates


def _is_name_of_rate(name: str, *, is_layer: bool) -> bool:
    """Whether an attribute of the user's module is a probability of dropping, by its name."""
    lower = name.lower()
    return "drop" in lower or lower in _KEEPS or (is_layer and lower in ("p", "rate", "prob"))


def check_rates(runner: Runner, runs: Sequence[Run], fallback: Location) -> Iterator[Finding]:
    """Set all rates, each to a number of its own, twice, and see which of them act."""
    noisy = {path for run in runs for path in run.noisy}  # as Gaussian dropout: it has no share
    rates = [rate for rate in list_rates(runner.model) if rate.path not in noisy]
    low, high = _spread(LOW, len(rates)), _spread(HIGH, len(rates))
    silent = list(range(len(rates)))
    own: dict[int, tuple[list[Site], list[Site]]] = {n: ([], []) for n in silent}
    swapped: dict[int, Site] = {}
    for step in range(len(runs)):  # a layer may be skipped by chance
        try:
            records = [_run_with(runner, rates, values, step) for values in (low, high)]
        except Exception:  # the model's own code refuses such a rate, which is its right
            return
        silent = [n for n in silent if not _acts(records, (low[n], high[n]))]
        for n in silent:
            complements = _find_complements(records, (low[n], high[n]))
            swapped.update({n: complements[0]} if complements else {})
            for sites, record, values in zip(own[n], records, (low, high), strict=True):
                sites += _sites_of_no_other(record, rates[n], {*values} - {values[n]})
        if not any(not own[n][0] for n in silent):
            break
    for n in silent:
        if n in swapped:
            yield _wrong_rate(rates[n], low[n], swapped[n])
        elif _differ(*own[n]):
            yield from _check_relation(rates[n], own[n], (low[n], high[n]), runs)
        else:
            yield from _find_dead(runner, rates[n], runs, fallback)


def _acts(records: Sequence[Record], values: tuple[float, float]) -> bool:
    """Whether a rate is that of a site, at one of its two values."""
    pairs = zip(records, values, strict=True)
    return any(_has_rate(site, value) for record, value in pairs for site in record.sites)


def _find_complements(records: Sequence[Record], values: tuple[float, float]) -> list[Site]:
    """Return the sites that keep with the probability of a rate, at both its values."""
    low, high = (
        [site for site in record.sites if _has_rate(site, 1 - value) and site.use in DROPS]
        for record, value in zip(records, values, strict=True)
    )
    return low if low and high else []


def _sites_of_no_other(record: Record, rate: Rate, others: set[float]) -> list[Site]:
    """Return the sites of the module that holds a rate, but for those that have another rate."""
    sites = _own_sites(record, rate)
    return [site for site in sites if not any(_has_rate(site, other) for other in others)]


def _spread(start: float, count: int) -> list[float]:
    return [start + WIDTH * (number + 0.5) / max(count, 1) for number in range(count)]


def _run_with(runner: Runner, rates: Sequence[Rate], values: Sequence[float], step: int) -> Record:
    with keep_state(runner.model):
        for rate, value in zip(rates, values, strict=True):
            setattr(rate.module, rate.attribute, 1 - value if rate.is_keep else value)
        return runner.train(step, backward=False).record


def _own_sites(record: Record, rate: Rate) -> list[Site]:
    return [site for site in record.sites if site.module == rate.path and site.generator != BUFFER]


def _has_rate(site: Site, rate: float) -> bool:
    return site.probability is not None and abs(site.probability - (1 - rate)) < EXACT


def _differ(low: Sequence[Site], high: Sequence[Site]) -> bool:
    """Whether sites drop otherwise at other rates; a branch that nobody can see may do."""
    shares = [[site.probability or site.kept for site in sites] for sites in (low, high)]
    return shares[0] != shares[1] or any(site.use == "branch" for site in low)


def _check_relation(
    rate: Rate, sites: Sequence[Sequence[Site]], values: tuple[float, float], runs: Sequence[Run]
) -> Iterator[Finding]:
    """D09: a layer that only drops, by another rate than its own."""
    low, high = ([site for site in each if site.use in DROPS] for each in sites)
    acting = {site.probability for run in runs for site in _own_sites(run.record, rate)}
    is_scheduled = len(acting) > 1
    if not rate.is_layer or len(low) != 1 or len(high) != 1 or is_scheduled:
        return
    if all(_may_have(site, value) for site, value in zip((low[0], high[0]), values, strict=True)):
        return
    yield _wrong_rate(rate, values[0], low[0])


def _wrong_rate(rate: Rate, value: float, site: Site) -> Finding:
    low, high = site.interval if site.probability is None else (site.probability,) * 2
    return Finding(
        "D09",
        "error",
        site.location,
        f"With {rate} set to drop {value:.4f}, a share of {site.kept:.4f} is kept, and the "
        f"probability of keeping is in [{low:.4f}, {high:.4f}], not {1 - value:.4f}.",
        "Look whether the rate is taken for its complement, or used twice.",
        callers=site.callers,
    )


def _may_have(site: Site, rate: float) -> bool:
    low, high = site.interval
    if site.probability is not None and site.is_independent:
        return abs(site.probability - (1 - rate)) < 0.01
    return low <= 1 - rate <= high or not site.is_independent


def _find_dead(
    runner: Runner, rate: Rate, runs: Sequence[Run], fallback: Location
) -> Iterator[Finding]:
    """D01: nothing depends on a rate. D02, a note: its module is in evaluation mode."""
    path = rate.path if rate.is_layer else str(rate)
    location = locate_assignment(runner.model, path or str(rate), fallback)
    if not rate.module.training:
        yield Finding(
            "D02",
            "note",
            location,
            f"{rate} = {rate.value} drops nothing in training: model.train() leaves its module in "
            "evaluation mode.",
            "",
        )
        return
    own = [site for run in runs for site in _own_sites(run.record, rate)]
    severity, why = _judge_dead(runner.model, rate, runs)
    location = own[0].location if own else location
    yield Finding(
        "D01",
        severity,
        location,
        f"{rate} = {rate.value} changes nothing: {why}.",
        "" if severity == "note" else "Call the layer, or pass the rate to the call that drops.",
    )


def _judge_dead(model: nn.Module, rate: Rate, runs: Sequence[Run]) -> tuple[Severity, str]:
    """Return how bad it is that nothing depends on a rate, and why."""
    parent = _find_caller(model, rate)
    called = {path for run in runs for path in run.called}
    sites = [site for run in runs for site in run.record.sites if site.is_active]
    same = next(
        (s for s in sites if _is_below(s.module, parent) and _may_have(s, rate.value)), None
    )
    if same is not None and not (rate.is_layer and rate.path in called):
        return "note", f"that rate acts at {same.location}, by other means"
    if parent not in called:
        return "note", f"nothing calls {parent!r} with this batch"
    if rate.is_layer and rate.path not in called:
        may_skip = any(site.use == "branch" for site in sites)
        return ("note", "chance skips it") if may_skip else ("error", "nothing calls it")
    is_certain = rate.is_layer or any(_own_sites(run.record, rate) for run in runs)
    return "error" if is_certain else "warning", "no mask depends on it"


def _find_caller(model: nn.Module, rate: Rate) -> str:
    """Return the path of the module that should use a rate: its own, or the one that holds it."""
    if not rate.is_layer:
        return rate.path
    parts = rate.path.split(".")[:-1]
    while parts and isinstance(_get(model, parts), _CONTAINERS):
        parts.pop()
    return ".".join(parts)


def _get(model: nn.Module, parts: Sequence[str]) -> nn.Module:
    inner = getattr(model, "_orig_mod", model)
    try:
        return inner.get_submodule(".".join(parts))
    except AttributeError:
        return inner


def _is_below(path: str, parent: str) -> bool:
    return not parent or path == parent or path.startswith(f"{parent}.")


def check_asked_rates(
    model: nn.Module, asked: Mapping[str, float], runs: Sequence[Run], fallback: Location
) -> Iterator[Finding]:
    """D09: the sites of a module do not have the rate that was asked. D01: it has none."""
    paths = [clean_path(path) for path, _ in model.named_modules()]
    for name, value in asked.items():
        if not any(_is_named(path, name) for path in paths):
            allowed = f"names of modules, such as {[path for path in paths if path][-3:]}"
            _validation.fail(ValueError, "rates", name, allowed, "Take a name of named_modules().")
        sites = [site for site in runs[0].record.sites if _is_named(site.module, name)]
        active = [site for site in sites if site.is_active]
        if value and not active:
            path = next(path for path in paths if _is_named(path, name))
            yield Finding(
                "D01",
                "error",
                locate_assignment(model, path, fallback),
                f"The rate {name!r} = {value} changes nothing: {path!r} drops nothing.",
                "Find where it is lost between the configuration and the call that drops.",
            )
        for site in active:
            low, high = site.interval if site.probability is None else (site.probability,) * 2
            if not low - EXACT <= 1 - value <= high + EXACT:
                yield Finding(
                    "D09",
                    "error",
                    site.location,
                    f"The rate {name!r} is to be {value}, but a share of {site.kept:.4f} is kept: "
                    f"the probability of keeping is in [{low:.4f}, {high:.4f}].",
                    "Set the rate that acts: the module takes it when it is made.",
                    callers=site.callers,
                )


def _is_named(path: str, name: str) -> bool:
    """Whether the parts of a name stand in a path, one after the other."""
    return f".{name}." in f".{path}."
