"""Make the record of one run of a PyTorch model from what the watch has seen."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dropout_jax.audit._one_run import COMPARABLE
from dropout_jax.audit._record import Noise, OpaqueCall, Record, Site
from dropout_jax.audit._reductions import CORNER
from dropout_jax.audit._statistics import share_interval
from dropout_jax.audit._torch_values import Application, Decision, Draw, is_kept_where_true

STATE = "the generator's state"  # what stands for the argument that the key depends on
BUFFER = "a tensor of the module"  # the generator of a mask that was there before the step


def build_record(
    decisions: Iterable[Decision],
    draws: Sequence[Draw],
    opaque: Sequence[OpaqueCall],
    *,
    masks: bool,
) -> Record:
    """Return the record of a run: sites, decisions of the backward pass without one, and noise."""
    applied = [decision for decision in decisions if decision.applications]
    forward = [decision for decision in applied if not decision.is_backward]
    again = [decision for decision in applied if decision.is_backward]
    made = {_mask_name(decision) for decision in forward}
    recomputed = Counter(_mask_name(decision) for decision in again)
    sites = tuple(
        _make_site(decision, recomputed[_mask_name(decision)], masks=masks) for decision in forward
    )
    strays = tuple(
        _make_site(decision, 0, masks=masks)
        for decision in again
        if _mask_name(decision) not in made
    )
    deciding = {draw for decision in applied for draw in decision.draws}
    noise = tuple(
        Noise(draw.origin.location, draw.generator, draw.shape, draw.use)
        for draw in draws
        if draw not in deciding
    )
    return Record(sites, strays, noise, tuple(opaque))


def _mask_name(decision: Decision) -> tuple:
    """Return what two decisions have in common if their masks are the same."""
    if decision.mask is None:
        return tuple(draw.key and draw.key[:2] for draw in decision.draws)
    return decision.mask.shape, *_hash(decision.mask)


def _hash(mask: np.ndarray) -> tuple[int, int]:
    digest = hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=16).digest()
    high, low = np.frombuffer(digest, np.uint64).tolist()
    return high, low


# What a site of JAX says besides: PyTorch draws on one device, with one generator at a time.
ONE_DEVICE: dict[str, Any] = {
    "mesh_axes": (),
    "devices": np.zeros((1, 0), np.int32),
    "data_varies_along": frozenset(),
    "has_repeated_keys": False,
    "loops": (),
    "pass_location": None,
}


def _make_site(decision: Decision, recomputations: int, *, masks: bool) -> Site:
    """Return all that is known of a decision and of where it meets data."""
    first = decision.applications[0]
    origin = first.origin if decision.is_buffer else decision.origin
    kept, interval, probability, decided = _measure_share(decision, first)
    mask, is_seeded = decision.mask, any(draw.is_seeded for draw in decision.draws)
    shape = first.shape if mask is None else mask.shape
    return Site(
        location=origin.location,
        callers=origin.callers,
        module=decision.origin.module,
        library=origin.library,
        generator=_name_generator(decision),
        shape=tuple(shape),
        applied_shape=first.shape,
        use=first.use,
        times=1,
        kept=kept,
        interval=interval,
        probability=probability,
        factors=(*first.factors, *first.later),
        shared_axes=first.shared_axes,
        is_drawn_shared=mask is not None and mask.size <= _count_shared(first),
        applications=_count_applications(decision),
        recomputations=recomputations,
        key_arguments=() if is_seeded or decision.is_buffer else (STATE,),
        is_seeded_inside=is_seeded,
        resolution=decision.resolution,
        is_independent=decision.is_independent and first.is_plain,
        scale_tolerance=first.tolerance,
        decided=decided,
        each=np.array([kept]),
        hashes=np.array([_hash_of(decision)], np.uint64),
        keys=(frozenset(draw.key for draw in decision.draws if draw.key),),
        dtype=first.dtype,
        mask_arguments=() if decision.is_buffer else (STATE,),
        drops_loss_terms=first.padding in ("masked", "mask"),
        **ONE_DEVICE,
        masks=None if mask is None or not masks else mask[None],
        corner=None if first.kept is None else _cut_corner(first.kept, first.shape)[None],
    )


def _cut_corner(kept: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the beginning of what is kept along the last four axes of the data."""
    kept = np.broadcast_to(kept, shape)
    kept = kept.reshape((1,) * (len(CORNER) - kept.ndim) + kept.shape)
    kept = kept[(0,) * (kept.ndim - len(CORNER))]
    return kept[tuple(slice(size) for size in CORNER)].copy()


def _name_generator(decision: Decision) -> str:
    if decision.is_buffer:
        return BUFFER
    return ", ".join(dict.fromkeys(draw.generator for draw in decision.draws))


def _hash_of(decision: Decision) -> tuple[int, int]:
    """Return the hash of a mask; of the generator's state, of one that nobody can see."""
    if decision.mask is not None:
        return _hash(decision.mask)
    state = np.frombuffer(repr([draw.key for draw in decision.draws]).encode(), np.uint8)
    return _hash(state)


def _measure_share(
    decision: Decision, application: Application
) -> tuple[float, tuple[float, float], float | None, int]:
    """Return the share that is kept, the interval, the exact probability, and the decisions."""
    mask, kept, probability = decision.mask, application.kept, decision.probability
    if mask is None or kept is None:
        share = 0.5 if probability is None else probability
        interval = (0.0, 1.0) if probability is None else (share, share)
        return share, interval, probability, 0
    is_true = is_kept_where_true(kept, mask) if application.is_plain else None
    if is_true is None:
        mask, probability = kept, None
    elif not is_true:
        mask, probability = ~mask, None if probability is None else 1 - probability
    count = int(mask.sum())
    share = count / mask.size if mask.size else 1.0
    return share, share_interval(count, mask.size), probability, mask.size


def _count_shared(application: Application) -> int:
    """Return how many decisions the data has, if all along the shared axes are one."""
    shared = math.prod(application.shape[axis] for axis in application.shared_axes)
    return math.prod(application.shape) // max(shared, 1)


def _count_applications(decision: Decision) -> int:
    """Return how often the same part of a mask meets data in the same way."""
    uses: Counter[tuple] = Counter()
    for application in decision.applications:
        kept = application.kept
        if kept is None or kept.size < COMPARABLE:  # equal by chance
            uses[application.use, application.origin.callers] += 1
        else:
            uses[application.use, _hash(kept)] += 1
    return max(uses.values())
