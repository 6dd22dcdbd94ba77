"""The findings of one training step, but for devices: D05 to D07, D10 to D12 and D15."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from dropout_jax.audit._findings import Finding, Severity
from dropout_jax.audit._record import Record, Site

COMPARABLE = 64  # decisions of a mask, at least: smaller ones are equal by chance
COARSE = 11  # random bits, at most, with which a rate is visibly rounded
DROPS = ("zero", "bias", "product")  # uses of a decision that are dropout and nothing else
SCALE_TOLERANCE = 0.005
VISIBLE_BIAS = 1e-3  # of the scale; that of bfloat16 at rate 0.1 is 1.7e-3
# Functions of libraries whose users ask for shared masks by calling them.
_OPT_IN_OVER_TIME = "keras:dropout_rnn_cell."
_OPT_IN = ("dropout_jax:", "flax:stochastic.", "haiku:basic.dropout", "keras:")


@dataclasses.dataclass(frozen=True)
class Declared:
    """What a user has declared as meant: parts of the text of a location, or of a module's path.

    Args:
      shared: sites whose decisions are shared.
      unscaled: sites that do not scale.
      padding: arguments that tell what is padding.
    """

    shared: tuple[str, ...] = ()
    unscaled: tuple[str, ...] = ()
    padding: tuple[str, ...] = ()

    def shares(self, *sites: Site) -> bool:
        """Whether the sharing of one of the sites is declared."""
        return any(_names(site, self.shared) for site in sites)

    def leaves_unscaled(self, site: Site) -> bool:
        """Whether it is declared that the site does not scale."""
        return _names(site, self.unscaled)


def _names(site: Site, parts: Sequence[str]) -> bool:
    texts = [site.module, *(str(location) for location in site.callers), *site.library]
    return any(part in text for part in parts for text in texts)


def check_one_run(record: Record, declared: Declared) -> Iterator[Finding]:
    """Iterate over the findings of one training step."""
    yield from find_reused_masks(record, declared)
    yield from find_keys_of_noise(record, declared)
    for site in record.sites:
        if site.is_active:
            yield from find_sharing(site, declared)
            yield from find_wrong_scale(site, declared)
            yield from find_coarse_rate(site)
            yield from find_dropped_padding(site, declared)
            yield from find_rounded_scale(site)
        yield from find_seed_inside(site)
    for site in record.strays:
        yield Finding(
            "D07",
            "error",
            site.location,
            f"The backward pass applies a mask of shape {site.shape} that no mask of the forward "
            "pass equals.",
            "Draw it again with the same key, or keep the mask for the backward pass.",
            callers=site.callers,
        )


def find_reused_masks(record: Record, declared: Declared) -> Iterator[Finding]:
    """D05: a key or a mask serves two sites, two turns of a loop, or two layers."""
    first_use: dict[tuple, tuple[int, int]] = {}
    for number, site in enumerate(record.sites):
        if not site.is_active:
            continue
        if site.applications > site.times and site.use not in ("branch", "product"):
            yield _reused(site, site, declared, f"is applied {site.applications} times")
        if site.has_repeated_keys and not site.shared_axes:
            yield _reused(site, site, declared, "is drawn with several keys, and some are equal")
        for time in range(site.times):
            device = tuple(site.devices[time].tolist())
            uses = [
                (name, first_use.setdefault((device, name), (number, time)))
                for name in _names_of(site, time)
            ]
            other, earlier = next(
                (
                    use
                    for name, use in uses
                    if use != (number, time) and _is_reuse(name, site, record.sites[use[0]])
                ),
                (number, time),
            )
            if other != number:
                where = f"is drawn with the key of {record.sites[other].location} too"
                yield _reused(site, record.sites[other], declared, where)
            elif earlier != time:
                yield _reused(site, site, declared, f"is the same in turns of {site.loops}")


def find_keys_of_noise(record: Record, declared: Declared) -> Iterator[Finding]:
    """D05, a warning: noise has the key of a mask, so the mask is a function of the noise."""
    for site in record.sites:
        keys = frozenset(key for each in site.keys for key in each)
        noise = next((noise for noise in record.noise if noise.keys & keys), None)
        if site.is_active and noise is not None:
            what = f"is drawn with the key of the numbers at {noise.location} too"
            yield dataclasses.replace(_reused(site, site, declared, what), severity="warning")


def _is_reuse(name: tuple, site: Site, other: Site) -> bool:
    """Whether a name that two uses have in common shows that they have the same numbers.

    This package draws a mask part by part, such as the rows of a batch in turn. Parts may have
    different bits of the same words: their masks tell.
    """
    return name[0] != "dropout_jax" or site.callers != other.callers


def _names_of(site: Site, time: int) -> set[tuple]:
    """Return what must differ between two uses: the keys, and the mask if it is large."""
    names: set[tuple] = set(site.keys[time]) if site.keys else set()
    if is_comparable(site, time):
        names.add(("mask", math.prod(site.shape), *site.hashes[time].tolist()))
    return names


def identify_mask(site: Site, time: int) -> Hashable | None:
    """Return what tells the masks of a site apart: the mask, or its keys if it is small."""
    if is_comparable(site, time):
        return tuple(site.hashes[time].tolist())
    return (site.keys[time] or None) if site.keys else None


def is_comparable(site: Site, time: int) -> bool:
    """Whether equal masks of a site are no accident."""
    return math.prod(site.shape) >= COMPARABLE and 0.02 < float(site.each[time]) < 0.98


def _reused(site: Site, other: Site, declared: Declared, what: str) -> Finding:
    is_other_pass = site.pass_location != other.pass_location  # as in sharpness-aware minimization
    is_meant = declared.shares(site, other) or (site is other and _is_over_time(site))
    severity: Severity = "note" if is_other_pass or is_meant else "error"
    remedy = (
        "Give each its own key: jax.random.fold_in(key, number of the layer). If it is meant, "
        "declare it: shared=['function of that line']."
    )
    return Finding(
        "D05",
        severity,
        site.location,
        f"The mask of shape {site.shape} {what}.",
        remedy if severity == "error" else "",
        callers=site.callers,
    )


def is_sharing_meant(site: Site, declared: Declared) -> bool:
    """Whether a site's mask of size 1 along an axis is asked for, or declared."""
    is_opt_in = any(name.startswith(_OPT_IN) for name in site.library)
    is_drawn_so = site.is_drawn_shared and (is_opt_in or not site.shape)
    is_meant = is_drawn_so or _is_over_time(site) or _is_of_rows(site)
    is_asked_for = bool(site.shared_axes) and is_meant
    return is_asked_for or declared.shares(site) or site.use not in DROPS


def _is_of_rows(site: Site) -> bool:
    """Whether each row has a decision of its own for all that is in it, as in DropPath."""
    long_axes = [axis for axis, size in enumerate(site.applied_shape) if size > 1]
    return list(site.shared_axes) == long_axes[1:] and 0 not in site.shared_axes


def _is_over_time(site: Site) -> bool:
    """Whether a recurrent layer of a library draws one mask for all steps of a sequence."""
    return any(name.startswith(_OPT_IN_OVER_TIME) for name in site.library)


def find_sharing(site: Site, declared: Declared) -> Iterator[Finding]:
    """D06: one decision for all positions along an axis; an error if nobody has declared it."""
    if not site.shared_axes:
        return
    axes = ", ".join(f"{axis} ({site.applied_shape[axis]} long)" for axis in site.shared_axes)
    is_note = is_sharing_meant(site, declared)
    remedy = (
        ""
        if is_note
        else (
            "Draw a mask of the whole shape, or one key for each row (broadcast_dropout=False in "
            "flax's attention). If it is meant, declare it: shared=['function of that line']."
        )
    )
    yield Finding(
        "D06",
        "note" if is_note else "error",
        site.location,
        f"Data of shape {site.applied_shape} has one decision along axis {axes}.",
        remedy,
        callers=site.callers,
    )


def find_wrong_scale(site: Site, declared: Declared) -> Iterator[Finding]:
    """D10: what is kept is not multiplied with 1 / (1 - rate), or it is twice."""
    if site.use != "zero" or not site.is_independent or not site.kept or not site.shape:
        return
    fault = _scale_fault(site)
    is_own = site.generator == "dropout_jax"
    if fault is None or declared.leaves_unscaled(site) or (is_own and "twice" not in fault):
        return
    kept = site.kept if site.probability is None else site.probability
    numbers = ", ".join(f"{factor:.6g}" for factor in site.factors) or "none"
    yield Finding(
        "D10",
        "error",
        site.location,
        f"A share of {kept:.4f} is kept, so the scale is {1 / kept:.4f}, but it is {fault} "
        f"(factors: {numbers}).",
        "Divide by 1 - rate once, where the mask is applied. If no scale is meant, declare it: "
        "unscaled=['function of that line'].",
        callers=site.callers,
    )


def _scale_fault(site: Site) -> str | None:
    """Return what is wrong with the scale, or None."""
    matching = [factor for factor in site.factors if _is_scale(site, factor)]
    product = math.prod(site.factors)
    if len(matching) > 1 and _is_distinct(site):
        return "applied twice"
    if matching or _is_scale(site, product):
        return None
    if any(_is_scale(site, factor, power=2) for factor in (*site.factors, product)):
        return "applied twice"
    return "wrong" if site.factors else None if _is_scale(site, 1.0) else "missing"


def _is_scale(site: Site, factor: float, *, power: int = 1) -> bool:
    """Whether 1 / factor may be the probability of keeping, to a power."""
    if factor <= 0:
        return False
    tolerance = SCALE_TOLERANCE + site.scale_tolerance
    if site.probability is not None:
        return abs(factor * site.probability**power - 1) <= tolerance
    low, high = (bound**power for bound in site.interval)
    return low * (1 - tolerance) <= 1 / factor <= high * (1 + tolerance)


def _is_distinct(site: Site) -> bool:
    """Whether a factor of 1 is surely not the scale."""
    return not _is_scale(site, 1.0)


def find_coarse_rate(site: Site) -> Iterator[Finding]:
    """D11: so few random bits decide that the rate is rounded."""
    if site.resolution > COARSE or site.probability is None or not site.is_independent:
        return
    if site.probability * 16 == round(site.probability * 16):
        return
    yield Finding(
        "D11",
        "warning",
        site.location,
        f"{site.resolution} random bits decide, so the probability of keeping is "
        f"{site.probability:.6g}, a multiple of 1/{2**site.resolution}; a rate such as 0.1 is not.",
        "Compare numbers of 32 bits: draw them in float32, with a threshold in float32.",
        callers=site.callers,
    )


def find_dropped_padding(site: Site, declared: Declared) -> Iterator[Finding]:
    """D12: terms of a loss are dropped after its padding mask, or padding is replaced as tokens."""
    if site.drops_loss_terms:
        yield Finding(
            "D12",
            "error",
            site.location,
            f"It drops a share of {1 - site.kept:.4f} of terms that a mask has been applied to and "
            "that are then summed: of a loss.",
            "Apply dropout in the model, before the loss.",
            callers=site.callers,
        )
    is_of_integers = isinstance(site.dtype, np.dtype) and site.dtype.kind in "iu"
    is_of_tokens = is_of_integers and site.use in ("replace", "mix", "zero")
    if is_of_tokens and declared.padding and not _knows_padding(site, declared.padding):
        yield Finding(
            "D12",
            "error",
            site.location,
            f"It replaces tokens of shape {site.applied_shape}, padding among them: its mask "
            f"depends on {', '.join(site.mask_arguments) or 'no argument'} only.",
            "Replace only where there is no padding: mask & (tokens != padding).",
            callers=site.callers,
        )


def _knows_padding(site: Site, padding: Sequence[str]) -> bool:
    return any(name in argument for name in padding for argument in site.mask_arguments)


def find_rounded_scale(site: Site) -> Iterator[Finding]:
    """D11, a note: the scale is rounded to the dtype of the data, such as bfloat16's 1 / 0.8984."""
    is_low = site.scale_tolerance > VISIBLE_BIAS
    if site.probability is None or site.scale is None or not (site.is_independent and is_low):
        return
    bias = site.scale * site.probability - 1
    if VISIBLE_BIAS < abs(bias) <= SCALE_TOLERANCE + site.scale_tolerance:
        yield Finding(
            "D11",
            "note",
            site.location,
            f"The scale is {site.scale:.6g} and not {1 / site.probability:.6g}, as its dtype has "
            f"few digits: the mean is off by {bias:+.2%}.",
            "Multiply in float32, and round the product once.",
            callers=site.callers,
        )


def find_seed_inside(site: Site) -> Iterator[Finding]:
    """D15: the key is jax.random.key(number) inside the step, and nothing is folded in."""
    if site.is_key_constant and site.is_seeded_inside:
        yield Finding(
            "D15",
            "error",
            site.location,
            "Its key is built from a number inside the step and depends on no argument.",
            "Pass the key as an argument, and fold the step in.",
            callers=site.callers,
        )
