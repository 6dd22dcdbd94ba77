"""The findings that the runs of a PyTorch model show: all but those of its rates."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from dropout_jax.audit._findings import Finding, Severity
from dropout_jax.audit._locations import Location
from dropout_jax.audit._many_runs import find_off_in_training, find_on_in_evaluation
from dropout_jax.audit._one_run import (
    COMPARABLE,
    DROPS,
    Declared,
    find_coarse_rate,
    find_dropped_padding,
    find_sharing,
    find_wrong_scale,
)
from dropout_jax.audit._record import Record, Site
from dropout_jax.audit._torch_frames import UNREGISTERED
from dropout_jax.audit._torch_record import BUFFER
from dropout_jax.audit._torch_run import Run

REMEDIES = {
    "D02": "Turn it on: model.train(), training=self.training, a rate above 0.",
    "D03": "Turn it off: nn.Dropout, or training=self.training; for attention dropout_p=self.p if "
    "self.training else 0.0. If Monte Carlo dropout is meant, say mc_dropout=True.",
    "D06": "Draw a mask of the whole shape: torch.rand_like(x). If it is meant, declare it: "
    "shared=['function of that line'].",
    "D11": "Draw the numbers in float32: torch.rand(x.shape, device=x.device).",
    UNREGISTERED: "Its module is not registered, so model.eval() does not reach it: keep it in an "
    "nn.ModuleList or an attribute of its own.",
    "D13": "If it is not meant, ask self.training before.",
}
_CHANNELS = ("dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout")


def check_runs(
    runs: Sequence[Run],
    evaluation: Run,
    declared: Declared,
    location: Location,
    aliases: Mapping[str, str],
    *,
    mc: bool,
) -> Iterator[Finding]:
    """Iterate over the findings of training steps and of an evaluation.

    Modules that have several names are `aliases`: of one name, a text with all.
    """
    records = [_without_buffers(run.record) for run in runs]
    repeated = list(find_repeated_steps(records, declared))
    yield from repeated
    kept = list(find_kept_masks(runs[0].record, evaluation.record, declared))
    yield from kept
    yield from find_seeds(runs[0], repeats=any(each.severity == "error" for each in repeated))
    yield from find_compiled(runs[0])
    yield from find_padding(runs[0])
    yield from find_reused_masks(records[0], declared)
    yield from find_shared_modules(records[0], aliases)
    for site in records[0].strays:
        if site.is_active:
            yield recomputed(site, records[0])
    for finding in _check_with_core(records, _without_buffers(evaluation.record), declared, mc=mc):
        yield with_remedy(finding)
    yield from () if mc else find_other_generators(evaluation.record)
    for finding in find_off_in_training(records, location) if not kept else ():
        yield with_remedy(finding)


def _check_with_core(
    records: Sequence[Record], evaluation: Record, declared: Declared, *, mc: bool
) -> Iterator[Finding]:
    """Iterate over the findings that are those of JAX."""
    for site in records[0].sites:
        if site.is_active:
            for finding in find_sharing(site, declared):
                is_meant = _is_sharing_named(site) or _is_per_sample(site)
                yield _as_note(finding) if is_meant else finding
            yield from find_coarse_rate(site)
            yield from find_dropped_padding(site, declared)
            is_other = any("alpha_dropout" in name for name in site.library)
            if not is_other and not _is_scaled_by_count(site):
                yield from find_wrong_scale(site, declared)
    unregistered = {site.location for site in evaluation.sites if UNREGISTERED in site.module}
    for finding in () if mc else find_on_in_evaluation(evaluation):
        if finding.code == "D03" and finding.location in unregistered:
            finding = dataclasses.replace(finding, remedy=REMEDIES[UNREGISTERED])
        yield finding


def with_remedy(finding: Finding) -> Finding:
    """Return a finding whose remedy is one for PyTorch."""
    if not finding.remedy or finding.remedy in REMEDIES.values():
        return finding
    remedy = REMEDIES.get(finding.code, finding.remedy)
    return dataclasses.replace(finding, remedy=remedy)


def _as_note(finding: Finding) -> Finding:
    return dataclasses.replace(finding, severity="note", remedy="")


def _is_scaled_by_count(site: Site) -> bool:
    """Whether the scale is what was kept this time, as x * mask / mask.mean()."""
    return any(abs(factor * site.kept - 1) < 1e-4 for factor in site.factors)


def _is_sharing_named(site: Site) -> bool:
    """Whether the function that drops says by its name that it drops channels."""
    return any(name.endswith(_CHANNELS) for name in site.library)


def _is_per_sample(site: Site) -> bool:
    """Whether each element of the first axis has one decision, as in stochastic depth."""
    others = tuple(axis for axis, size in enumerate(site.applied_shape) if axis and size > 1)
    return site.is_drawn_shared and others == site.shared_axes


def _without_buffers(record: Record) -> Record:
    sites = tuple(site for site in record.sites if site.generator != BUFFER)
    return dataclasses.replace(record, sites=sites)


def find_repeated_steps(records: Sequence[Record], declared: Declared) -> Iterator[Finding]:
    """D04: a site has one mask at all steps. D14: at some of them."""
    by_step = [_name_sites(record) for record in records]
    for name, site in by_step[0].items():
        masks = [_identify(sites[name]) for sites in by_step if name in sites]
        if len(masks) < 2 or not site.is_active or None in masks:
            continue
        severity: Severity = "note" if declared.shares(site) else "error"
        if len(set(masks)) == 1:
            yield Finding(
                "D04",
                severity,
                site.location,
                f"Its mask is the same at all {len(masks)} steps"
                + (": its generator is seeded inside the step." if site.is_seeded_inside else "."),
                "Draw it again in every step, from a generator that nothing seeds or sets back.",
                callers=site.callers,
            )
        elif len(set(masks)) < len(masks):
            again = next(n for n, mask in enumerate(masks) if mask in masks[:n])
            yield replayed(site, again, masks.index(masks[again]))


def _name_sites(record: Record) -> dict[tuple, Site]:
    """Return the sites by their lines, and a number where several have the same."""
    counts: dict[tuple, int] = defaultdict(int)
    named = {}
    for site in record.sites:
        name = site.callers, site.generator, site.module
        counts[name] += 1
        named[*name, counts[name]] = site
    return named


def _identify(site: Site) -> object:
    """Return what tells the masks of a site at two steps apart; None if they are too small."""
    if site.keys and site.keys[0]:
        return frozenset(key[:2] for key in site.keys[0])
    return site.hashes.tobytes() if site.decided >= COMPARABLE else None


def replayed(site: Site, step: int, earlier: int, how: str = "") -> Finding:
    """D14: masks of an earlier step come again."""
    return Finding(
        "D14",
        "error",
        site.location,
        f"Its mask at step {step}{how} is that of step {earlier}.",
        "Save torch.get_rng_state() with the checkpoint and set it at the resume, or seed with a "
        "number that depends on the step.",
        callers=site.callers,
    )


def find_replay_after_resume(before: Sequence[Run], after: dict[int, Run]) -> Iterator[Finding]:
    """D14: a resumed run has the masks of earlier steps."""
    earlier = [_name_sites(run.record) for run in before]
    for step, run in after.items():
        for name, site in _name_sites(run.record).items():
            mask = _identify(site)
            for number, sites in enumerate(earlier[:step]):
                is_same = name in sites and mask == _identify(sites[name])
                if site.is_active and mask is not None and is_same:
                    yield replayed(site, step, number, " after a resume")


def find_kept_masks(training: Record, evaluation: Record, declared: Declared) -> Iterator[Finding]:
    """D04: a mask that was drawn before the step, applied in training only."""
    others = {(site.module, site.hashes.tobytes()) for site in evaluation.sites}
    for site in training.sites:
        is_structure = (site.module, site.hashes.tobytes()) in others  # such as a causal mask
        if site.generator != BUFFER or site.use not in DROPS or is_structure:
            continue
        yield Finding(
            "D04",
            "note" if declared.shares(site) else "error",
            site.location,
            f"Its mask of shape {site.shape} is a tensor that {site.module or 'the model'!r} holds "
            "since before the step, and training applies it without drawing it.",
            "Draw it in the forward pass, in every step.",
            callers=site.callers,
        )


def find_seeds(run: Run, *, repeats: bool) -> Iterator[Finding]:
    """D15: the forward pass seeds a generator; an error if masks come again."""
    for origin in run.seeds:
        yield Finding(
            "D15",
            "error" if repeats else "note",
            origin.location,
            "A generator is seeded in the forward pass"
            + (", with the same number at every step." if repeats else "."),
            "Seed once, before the training.",
            callers=origin.callers,
        )


def find_compiled(run: Run) -> Iterator[Finding]:
    """D07, a note: what torch.compile draws is not what was recorded."""
    for origin in dict.fromkeys(run.compiled):
        yield Finding(
            "D07",
            "note",
            origin.location,
            "torch.compile compiles this line. It ran uncompiled here: the compiled program draws "
            "masks of its own, with the same rate, which nobody can see.",
            "To have the same masks, set torch._inductor.config.fallback_random = True.",
            callers=origin.callers,
        )


def find_padding(run: Run) -> Iterator[Finding]:
    """D12: tokens of the padding are replaced; a note where dropout covers them."""
    for number, relation in run.padding.items():
        site = run.record.sites[number]
        if not site.is_active or site.generator == BUFFER or site.drops_loss_terms:
            continue
        is_fault = relation == "replaced"
        yield Finding(
            "D12",
            "error" if is_fault else "note",
            site.location,
            f"It replaces tokens of shape {site.applied_shape}, padding among them."
            if is_fault
            else "It decides at the padding too, which no loss should count.",
            "Replace only where there is no padding: mask & (tokens != padding)."
            if is_fault
            else "",
            callers=site.callers,
        )


def find_reused_masks(record: Record, declared: Declared) -> Iterator[Finding]:
    """D05: one mask, or one state of the generator, serves two sites."""
    first: dict[tuple, tuple[Site, int]] = {}
    for site in record.sites:
        if not site.is_active:
            continue
        if site.applications > 1 and site.use in (*DROPS, "mix"):
            yield _reused(site, site, declared, f"is applied {site.applications} times")
        for name, number in _names_of(site).items():
            other, earlier = first.setdefault(name, (site, number))
            if other is not site and (name[0] == "mask" or earlier != number):
                yield _reused(site, other, declared, f"is that of {other.location} too")
                break


def _names_of(site: Site) -> dict[tuple, int]:
    """Return what must differ between two sites: the states of generators, and a large mask."""
    names = {key[:2]: key[2] for keys in site.keys for key in keys}
    if site.decided >= COMPARABLE and 0.02 < site.kept < 0.98:
        names["mask", site.decided, *site.hashes[0].tolist()] = 0
    return names


def _reused(site: Site, other: Site, declared: Declared, what: str) -> Finding:
    return Finding(
        "D05",
        "note" if declared.shares(site, other) else "error",
        site.location,
        f"The mask of shape {site.shape} {what}.",
        "Draw a mask for each, and seed no generator in between. If it is meant, declare it: "
        "shared=['function of that line'].",
        callers=site.callers,
    )


def find_shared_modules(record: Record, aliases: Mapping[str, str]) -> Iterator[Finding]:
    """D05, a note: several lines call one module that drops; each call has a mask of its own."""
    lines: dict[str, dict[Location, Site]] = defaultdict(dict)
    for site in record.sites:
        if site.module and any(":dropout." in name for name in site.library):
            lines[site.module].setdefault(site.location, site)
    for module, sites in lines.items():
        if len(sites) == 1 and module not in aliases:
            continue
        *_, site = sites.values()
        count = "A line calls" if len(sites) == 1 else f"{len(sites)} lines call"
        yield Finding(
            "D05",
            "note",
            site.location,
            f"{count} the module {aliases.get(module, repr(module))}. Each call draws its own "
            "mask, at one rate.",
            "",
            callers=site.callers,
        )


def recomputed(site: Site, record: Record) -> Finding:
    """D07: the backward pass has a mask that the forward pass has not, at the line of that one."""
    first = (one for one in record.sites if one.module == site.module and one.shape == site.shape)
    origin = next((one for one in first if site.module), site)
    return Finding(
        "D07",
        "error",
        origin.location,
        f"The backward pass draws a mask of shape {site.shape} that the forward pass did not have.",
        "Let checkpoint(..., preserve_rng_state=True) set the generator back, which is its "
        "default; a torch.autograd.Function saves its mask for the backward pass.",
        callers=origin.callers,
    )


def find_other_generators(record: Record) -> Iterator[Finding]:
    """D13, a note: the evaluation draws from a generator that PyTorch does not know of."""
    for call in record.opaque:
        yield Finding(
            "D13",
            "note",
            call.location,
            f"The evaluation draws random numbers from {call.primitive}.",
            REMEDIES["D13"],
        )
