"""The findings that need several records: D01, D02, D03, D04, D09, D13 and D14."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dropout_jax.audit._findings import Finding
from dropout_jax.audit._locations import Location
from dropout_jax.audit._one_run import COMPARABLE, DROPS, is_comparable
from dropout_jax.audit._record import Record, Site
from dropout_jax.audit._statistics import share_interval


def find_off_in_training(records: Sequence[Record], location: Location) -> Iterator[Finding]:
    """D02: no step drops anything."""
    if any(site.is_active for record in records for site in record.sites):
        return
    if any(call.is_random for record in records for call in record.opaque):
        return
    if any(noise.use == "multiplied" for record in records for noise in record.noise):
        return
    calls = [call for record in records for call in record.opaque]
    unseen = [f"{call.primitive} at {call.location} does" for call in calls]
    unseen += [
        f"becomes of the random numbers at {noise.location}"
        for record in records
        for noise in record.noise
        if noise.use == "other"
    ]
    limit = f" What {unseen[0]} is not seen." if unseen else ""
    yield Finding(
        "D02",
        "note" if unseen else "error",
        location,
        f"The training step drops nothing.{limit}",
        "Turn it on: deterministic=False, model.train(), a rate above 0, a key.",
    )


def find_on_in_evaluation(record: Record) -> Iterator[Finding]:
    """D03: the evaluation drops. D13, a note: it is random in another way."""
    for site in record.sites:
        is_dropout = site.use in DROPS
        if site.is_active:
            yield Finding(
                "D03" if is_dropout else "D13",
                "error" if is_dropout else "note",
                site.location,
                f"The evaluation keeps a share of {site.kept:.4f} of {site.applied_shape}.",
                "Turn it off: deterministic=True, model.eval(), key=None. If Monte Carlo dropout "
                "is meant, say mc_dropout=True.",
                callers=site.callers,
            )
    for noise in record.noise:
        is_dropout = noise.use == "multiplied"
        yield Finding(
            "D03" if is_dropout else "D13",
            "error" if is_dropout else "note",
            noise.location,
            f"The evaluation draws random numbers of shape {noise.shape} ({noise.use}).",
            "If they are not meant, turn them off in evaluation.",
        )


def find_repeated_steps(records: Sequence[Record]) -> Iterator[Finding]:
    """D04: a site has one mask at all steps. D14: at some of them."""
    for number, site in enumerate(records[0].sites):
        runs = [record.sites[number] for record in records if number < len(record.sites)]
        masks = [_identity(run) for run in runs]
        if not site.is_active or None in masks:
            continue
        if len(set(masks)) == 1 and (len(runs) > 1 or site.is_key_constant):
            yield _same_at_every_step(site, len(runs))
        elif len(set(masks)) < len(masks):
            again = next(n for n, mask in enumerate(masks) if mask in masks[:n])
            yield _replayed(site, again, masks.index(masks[again]))


def find_collisions(records: Sequence[Record]) -> Iterator[Finding]:
    """D14: a site has the mask that another site, or turn of its loop, has had at another step."""
    first_use: dict[tuple, tuple[int, int, int]] = {}
    for step, record in enumerate(records):
        for number, site in enumerate(record.sites):
            is_large = site.is_active and site.decided // site.times >= COMPARABLE
            if site.is_key_constant or not is_large:
                continue
            for turn, words in enumerate(site.hashes.tolist()):
                use = step, number, turn
                if not is_comparable(site, turn):
                    continue
                earlier = first_use.setdefault((*site.shape, *words), use)
                if earlier[0] != step and earlier[1:] != use[1:]:
                    other = records[earlier[0]].sites[earlier[1]]
                    yield _replayed(site, step, earlier[0], "", f" at {other.location}")


def _same_at_every_step(site: Site, count: int) -> Finding:
    cause = "depends on no argument of the step"
    if not site.is_key_constant:
        cause = f"depends on {', '.join(site.key_arguments)}, which does not change it"
    return Finding(
        "D04",
        "error",
        site.location,
        f"Its mask is the same at {'every step' if count == 1 else f'all {count} steps'}: the key "
        f"{cause}.",
        "Fold the number of the step into the key: jax.random.fold_in(key, step).",
        callers=site.callers,
    )


def _replayed(site: Site, step: int, earlier: int, how: str = "", where: str = "") -> Finding:
    return Finding(
        "D14",
        "error",
        site.location,
        f"Its mask at step {step}{how} is that of step {earlier}{where}.",
        "Fold the number of the step into the key of the run, so that a resumed run goes on, and "
        "the layer into that key: jax.random.fold_in(jax.random.fold_in(key, step), layer).",
        callers=site.callers,
    )


def find_replay_after_resume(
    records: Mapping[int, Record], resumed: Mapping[int, Record]
) -> Iterator[Finding]:
    """D14: a resumed run has the masks of earlier steps."""
    for step, record in resumed.items():
        for number, site in enumerate(record.sites):
            mask = _identity(site)
            for earlier, before in records.items():
                if earlier >= step or number >= len(before.sites) or mask is None:
                    continue
                if site.is_active and _identity(before.sites[number]) == mask:
                    yield _replayed(site, step, earlier, " after a resume")


def _identity(site: Site) -> object:
    """Return what tells the masks of a site at two steps apart; None if they are too small."""
    if site.keys and all(site.keys):
        return site.keys
    if site.decided >= COMPARABLE:
        return site.hashes.tobytes()
    return None


def find_dead_rate(
    name: str, records: Sequence[tuple[float, Sequence[Record]]], location: Location
) -> Iterator[Finding]:
    """D01: two rates give the same masks at every step. D09: sites do not drop what was asked."""
    (low, first), (high, second) = records
    pairs = list(zip(first, second, strict=True))
    if all(len(one.sites) == len(other.sites) for one, other in pairs):
        numbers = {number for pair in pairs for number in _changed_sites(*pair)}
        changed = [[run.sites[number] for run in runs for number in numbers] for _, runs in records]
    else:
        changed = list(zip(*(_new_sites(*pair) for pair in pairs), strict=True))
        changed = [[site for sites in steps for site in sites] for steps in changed]
    if not any(changed):
        yield Finding(
            "D01",
            "error",
            location,
            f"The rate {name!r} changes nothing: with {low} and {high}, every mask is the same.",
            "Find where it is lost between the configuration and the call that drops.",
        )
    for rate, sites in zip((low, high), changed, strict=True):
        yield from _find_wrong_rate(name, rate, sites)


def _changed_sites(first: Record, second: Record) -> set[int]:
    """Return the numbers of the sites whose masks differ."""
    return {
        number
        for number, (before, after) in enumerate(zip(first.sites, second.sites, strict=True))
        if before.hashes.tobytes() != after.hashes.tobytes()
    }


def _new_sites(first: Record, second: Record) -> tuple[list[Site], list[Site]]:
    """Return the sites that are active with one rate only."""
    one, other = ({site.callers for site in run.sites if site.is_active} for run in (first, second))
    gone = [site for site in first.sites if site.callers not in other]
    return gone, [site for site in second.sites if site.callers not in one]


def _find_wrong_rate(name: str, rate: float, sites: Sequence[Site]) -> Iterator[Finding]:
    """D09: no site of a line drops the rate, as the last of a depth or a schedule would."""
    for callers in dict.fromkeys(site.callers for site in sites):
        here = [site for site in sites if site.callers == callers and site.use in DROPS]
        if not here or any(_has_rate(site, rate) for site in here) or _is_scheduled(here):
            continue
        nearest = min(here, key=lambda site: abs(1 - site.kept - rate))
        if not all(site.is_independent for site in here):
            continue
        low, high = nearest.interval
        yield Finding(
            "D09",
            "error",
            nearest.location,
            f"With the rate {name!r} = {rate}, a share of {nearest.kept:.4f} is kept, and the "
            f"probability of keeping is in [{low:.4f}, {high:.4f}], not {1 - rate:.4f}.",
            "Look whether the rate is taken for its complement, or used twice.",
            nearest.callers,
        )


def _is_scheduled(sites: Sequence[Site]) -> bool:
    """Whether the rate of a line changes, over the steps or over the depth."""
    lows, highs = zip(*(site.interval for site in sites), strict=True)
    return max(lows) > min(highs)


def _has_rate(site: Site, rate: float) -> bool:
    """Whether one of the times that a site decides may have had the rate."""
    decided = max(site.decided // max(site.times, 1), 1)
    for share in {*site.each.tolist()}:
        low, high = share_interval(round(share * decided), decided)
        if low <= 1 - rate <= high:
            return True
    return False
