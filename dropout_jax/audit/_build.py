"""Build the record of a run from the graph of its program and the computed points."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dropout_jax.audit._graph import Application, Decision, Draw, Graph, Point
from dropout_jax.audit._jaxprs import TURNS, form_of, is_backward, manual_axes, module_path
from dropout_jax.audit._locations import (
    find_callers,
    find_gradient_call,
    find_library_calls,
    find_location,
    is_inside_sampler,
)
from dropout_jax.audit._record import Noise, OpaqueCall, Record, Site
from dropout_jax.audit._statistics import chance_of_constant, probability_of_true, share_interval
from dropout_jax.audit._values import Kind, merge

Harvest = Mapping[int, Mapping[str, np.ndarray]]

ACCIDENT = 1e-6  # a mask that is constant along an axis by such a chance says nothing


class _Run(NamedTuple):
    graph: Graph
    harvest: Harvest
    names: Sequence[str]

    def read(self, point: Point, name: str) -> np.ndarray:
        """Return a reduction of every time that the program passed: (times, ...)."""
        reductions = self.harvest[point.number]
        ran = reductions["ran"].reshape(-1) > 0
        values = reductions[name]
        inner = values.shape[reductions["ran"].ndim :]
        return values.reshape(ran.size, *inner)[ran]


def build_record(graph: Graph, harvest: Harvest, names: Sequence[str]) -> Record:
    """Return the record of a run; `names` are those of the step's arguments."""
    run = _Run(graph, harvest, names)
    uses = _applications_of(graph)
    forward, backward = [], []
    for name, decision in graph.decisions.items():
        if name in uses and run.read(decision.mask_point, "ran").size:
            part = backward if is_backward(decision.trail) else forward
            part.append((name, _build_site(run, decision, uses[name])))
    sites, strays = _match_recomputations([s for _, s in forward], [s for _, s in backward])
    return Record(tuple(sites), tuple(strays), _build_noise(run, uses), _build_opaque(run))


def _applications_of(graph: Graph) -> dict[Any, list[tuple[Any, Application, bool]]]:
    """Return, for each decision, its applications: (name, application, is True of it True).

    Those inside a sampler of jax.random, which may reject numbers, are not the user's.
    """
    uses: dict[Any, list[tuple[Any, Application, bool]]] = {}
    for name, application in graph.applications.items():
        if is_inside_sampler(application.trail):
            continue
        for decision, is_true in application.mask.decisions:
            if _is_rejection(graph.decisions.get(decision)):
                continue
            uses.setdefault(decision, []).append((name, application, is_true))
    return uses


def _is_rejection(decision: Decision | None) -> bool:
    """Whether a decision is of a sampler that draws until it accepts, as of binomial numbers."""
    trail = () if decision is None else decision.trail
    whiles = [n for n, equation in enumerate(trail, 1) if form_of(equation) == "while"]
    return any(is_inside_sampler(trail[:n]) for n in whiles)


class _Share(NamedTuple):
    """What a decision keeps: whether what is True, which share, and whether as it is."""

    keeps_true: bool
    of_true: float
    kept: float
    is_spread: bool


def _build_site(run: _Run, decision: Decision, uses: list[tuple[Any, Application, bool]]) -> Site:
    forward = [use for use in uses if not is_backward(use[1].trail)]
    name, application, is_true = (forward or uses)[0]
    size, counts = math.prod(decision.shape), run.read(decision.mask_point, "count")
    share = _measure_share(run, decision, application, is_true=is_true)
    shared = _shared_axes(run, application, share.kept)
    decided = _count_decided(application, shared, size) * counts.size
    has_masks = "mask" in run.harvest[decision.mask_point.number]
    return Site(
        **_describe_location(decision),
        **_describe_keys(run, decision, counts.size),
        **_describe_devices(run, decision, application),
        shape=decision.shape,
        applied_shape=application.shape,
        use=application.use,
        times=counts.size,
        kept=share.kept,
        interval=share_interval(round(share.kept * decided), decided),
        probability=_probability(run, decision, share, decided),
        factors=_factors(run, name, application, _share_each(counts / max(size, 1), share)),
        shared_axes=shared,
        is_drawn_shared=_is_drawn_shared(decision, application, shared),
        applications=_count_applications(run, forward, counts.size),
        recomputations=0,
        resolution=decision.value.bits,
        is_independent=decision.value.is_independent and not share.is_spread,
        scale_tolerance=_scale_tolerance(application),
        decided=decided,
        each=_share_each(counts / max(size, 1), share),
        hashes=run.read(decision.mask_point, "hash"),
        dtype=application.dtype,
        mask_arguments=_names_of(run, application.mask.arguments),
        drops_loss_terms=any(_drops_loss_terms(run, name, use) for name, use, _ in forward),
        masks=run.read(decision.mask_point, "mask") if has_masks else None,
        corner=_corner(run, application),
    )


def _describe_location(decision: Decision) -> dict[str, Any]:
    """Return what the equations around a decision say of its location."""
    return {
        "location": find_location(decision.trail),
        "callers": find_callers(decision.trail),
        "module": module_path(decision.trail),
        "library": find_library_calls(decision.trail),
        "loops": _loops(decision.trail),
        "pass_location": find_gradient_call(decision.trail),
    }


def _describe_keys(run: _Run, decision: Decision, times: int) -> dict[str, Any]:
    """Return what is known of the keys that a decision is drawn with."""
    return {
        "generator": _generator(run.graph, decision),
        "key_arguments": _key_arguments(run, decision),
        "is_seeded_inside": bool(decision.value.seeds),
        "keys": _keys(run, decision, times),
        "has_repeated_keys": _has_repeated_keys(run, decision),
    }


def _describe_devices(run: _Run, decision: Decision, application: Application) -> dict[str, Any]:
    """Return which devices make a decision, and where their data differs."""
    return {
        "mesh_axes": _mesh_axes(decision),
        "devices": _devices(run, decision),
        "data_varies_along": application.varies_along,
    }


def _drops_loss_terms(run: _Run, name: Any, application: Application) -> bool:
    """Whether terms that flags mask, before dropout or after it, are summed to a number."""
    summed = run.graph.summed
    return name in summed and (application.is_on_masked or summed[name])


def _measure_share(
    run: _Run, decision: Decision, application: Application, *, is_true: bool
) -> _Share:
    counts = run.read(decision.mask_point, "count").astype(np.int64)
    of_true = float(counts.sum() / max(math.prod(decision.shape) * counts.size, 1))
    keeps_true = _keeps_where_true(run, application, of_true, is_true=is_true)
    spread = _share_of_spread_mask(run, application, decision, of_true)
    kept = spread if spread is not None else of_true if keeps_true else 1 - of_true
    return _Share(keeps_true, of_true, kept, spread is not None)


def _count_applications(run: _Run, uses: list[tuple[Any, Application, bool]], times: int) -> int:
    """Return how often the forward pass applies a decision that it makes so many times.

    Forward differentiation applies it to the tangents too, which is one use. It is another if it is
    in a loop, at another line, or works on the result of a use. What does the opposite, as a loss
    of the tokens that a model has not seen, is no other use.
    """
    uses = [use for use in uses if _effect(*use[1:]) == _effect(*uses[0][1:])]
    turns = max((run.read(application.point, "ran").size for _, application, _ in uses), default=0)
    lines = {find_callers(application.trail) for _, application, _ in uses}
    bits = sum(1 << run.graph.numbers[name] for name, _, _ in uses)
    chained = sum(bool(application.history & bits) for _, application, _ in uses)
    return max(turns, times * len(lines), times * (1 + chained) if len(uses) > 1 else 0)


def _effect(application: Application, is_true: bool) -> tuple[str, bool]:
    """Return what a decision does there, and whether to what it makes True."""
    if application.is_kept_where_true is None:
        return application.use, is_true
    return application.use, application.is_kept_where_true == is_true


def _share_each(of_true: np.ndarray, share: _Share) -> np.ndarray:
    """Return the share that is kept, for each time."""
    if share.is_spread:
        return np.full(of_true.shape, share.kept)
    return of_true if share.keeps_true else 1 - of_true


def _keeps_where_true(
    run: _Run, application: Application, true_share: float, *, is_true: bool
) -> bool:
    """Whether what a decision makes True is kept."""
    if application.is_kept_where_true is not None:
        return application.is_kept_where_true == is_true
    if application.use != "zero":
        return True
    counts = run.read(application.point, "count").astype(np.float64)
    share = counts.mean() / max(math.prod(application.shape), 1) if counts.size else true_share
    if min(abs(share - true_share), abs(share - (1 - true_share))) > 1e-6:
        return is_true  # a condition of data has a part in the mask
    return bool(abs(share - true_share) <= abs(share - (1 - true_share)))


def _share_of_spread_mask(
    run: _Run, application: Application, decision: Decision, true_share: float
) -> float | None:
    """Return the share that is kept where a mask is not the decision itself, as in DropBlock."""
    if application.use != "zero" or application.mask.arguments & ~decision.value.arguments:
        return None
    counts = run.read(application.point, "count").astype(np.float64)
    if not counts.size:
        return None
    share = float(counts.mean() / max(math.prod(application.shape), 1))
    if min(abs(share - true_share), abs(share - (1 - true_share))) < 1e-6:
        return None
    return 1 - share if application.is_kept_where_true is False else share


def _shared_axes(run: _Run, application: Application, kept: float) -> tuple[int, ...]:
    """Return the axes of the data along which the mask is constant, and not by chance."""
    constant = run.read(application.point, "constant")
    if application.use in ("branch",) or not constant.size or kept in (0.0, 1.0):
        return ()
    shape = application.shape
    always = np.all(constant, axis=0).tolist()
    axes = tuple(axis for axis, yes in enumerate(always) if yes and shape[axis] > 1)
    decided = math.prod(shape) // math.prod(shape[axis] for axis in axes) * len(constant)
    return tuple(
        axis
        for axis in axes
        if not application.mask.axes >> axis & 1  # it is broadcast along it
        or chance_of_constant(kept, shape[axis], decided) < ACCIDENT
    )


def _corner(run: _Run, application: Application) -> np.ndarray:
    """Return the beginning of what is kept of the data, for each time; a bias drops."""
    corner, is_kept = run.read(application.point, "corner"), application.is_kept_where_true
    return corner if is_kept or (is_kept is None and application.use != "bias") else ~corner


def _count_decided(application: Application, shared: Sequence[int], size: int) -> int:
    """Return how many decisions a mask has, those that are shared counted once."""
    if application.use in ("branch", "product"):
        return size
    shape = application.shape
    return min(size, max(math.prod(shape) // math.prod(shape[axis] for axis in shared), 1))


def _is_drawn_shared(decision: Decision, application: Application, shared: Sequence[int]) -> bool:
    if not decision.shape or len(decision.shape) != len(application.shape):
        return not decision.shape
    return all(decision.shape[axis] == 1 for axis in shared)


def _key_arguments(run: _Run, decision: Decision) -> tuple[str, ...]:
    """Return the names of the arguments that the keys depend on."""
    keys = [run.graph.draws[draw].key for draw in decision.value.draws if draw in run.graph.draws]
    return _names_of(run, merge(keys or [decision.value], Kind.KEY, 0).arguments)


def _names_of(run: _Run, arguments: int) -> tuple[str, ...]:
    return tuple(name for number, name in enumerate(run.names) if arguments >> number & 1)


def _generator(graph: Graph, decision: Decision) -> str:
    names = {graph.draws[draw].generator for draw in decision.value.draws if draw in graph.draws}
    return "+".join(sorted(names)) or "arithmetic on a key"


def _loops(trail: Sequence[Any]) -> tuple[str, ...]:
    loops = []
    for equation in trail:
        form = form_of(equation)
        if form == "scan":
            loops.append(f"scan {equation.params['length']}")
        elif form == "while":
            loops.append("while")
        elif form == "shard_map":
            loops.append(f"shard_map {dict(equation.params['mesh'].shape)}")
    return tuple(loops)


def _mesh_axes(decision: Decision) -> tuple[str, ...]:
    calls = [equation for equation in decision.trail if form_of(equation) == "shard_map"]
    return tuple(name for call in calls for name in manual_axes(call))


def _devices(run: _Run, decision: Decision) -> np.ndarray:
    """Return the indices of the device of each time along the axes of the mesh."""
    ran = run.harvest[decision.mask_point.number]["ran"]
    loops = [equation for equation in decision.trail if form_of(equation) in TURNS]
    turns = np.indices(ran.shape).reshape(ran.ndim, ran.size)[:, ran.reshape(-1) > 0]
    indices = [
        index
        for call, turn in zip(loops, turns, strict=True)
        if form_of(call) == "shard_map"
        for index in np.unravel_index(turn, list(manual_axes(call).values()))
    ]
    return np.stack(indices, axis=-1) if indices else np.zeros((turns.shape[1], 0), int)


def _probability(run: _Run, decision: Decision, kept: _Share, decided: int) -> float | None:
    """Return the exact probability of keeping, if the program compares with a number."""
    threshold = decision.threshold
    if threshold is None or not decision.value.is_independent:
        return None
    numbers = np.unique(run.read(threshold.point, "number"))
    if numbers.size != 1:
        return None
    is_float = bool(jnp.issubdtype(threshold.dtype, jnp.floating))
    if not is_float and decision.value.bits != 8 * threshold.dtype.itemsize:
        return None
    share = probability_of_true(
        float(numbers[0]),
        threshold.primitive,
        decision.value.bits,
        is_first=threshold.is_first,
        is_float=is_float,
    )
    low, high = share_interval(round(kept.of_true * decided), decided)
    if share is None or not low <= share <= high:
        return None
    return share if kept.keeps_true else 1 - share


def _factors(run: _Run, name: Any, application: Application, each: np.ndarray) -> tuple[float, ...]:
    """Return what the data is multiplied with, before, by the mask itself and after.

    The last factor before a mask is that of its site. What is between the last site and that factor
    belongs to the last site.
    """
    if application.use != "zero":
        return ()
    claimed = {
        _identity(other.factors[-1][0])
        for other in run.graph.applications.values()
        if other.factors and not is_backward(other.trail)
    }
    of_others = {
        _identity(factor[0])
        for other, factors in run.graph.later_factors.items()
        for factor in factors
        if other != name
    }
    before = [
        _factor(run, *factor, each)
        for number, factor in enumerate(application.factors, 1)
        if number == len(application.factors) or _identity(factor[0]) not in of_others
    ]
    most = run.read(application.point, "most")
    inside = [float(np.median(most))] if application.is_kept_where_true is None else []
    factors = _without_ones([*before, *inside])
    later = run.graph.later_factors.get(name, [])
    is_own = [_identity(point) not in claimed for point, _, _ in later]
    direct = [
        _factor(run, point, is_divisor, each)
        for (point, is_divisor, is_direct), own in zip(later, is_own, strict=True)
        if is_direct and (own or not factors)
    ]
    factors += _without_ones(direct)
    if not factors:  # attention may scale after the product with the values
        pairs = zip(later, is_own, strict=True)
        behind = {_factor(run, point, divides, each) for (point, divides, _), own in pairs if own}
        factors = _without_ones(sorted(behind, key=str))
    return tuple(factors)


def _without_ones(factors: Sequence[float | None]) -> list[float]:
    """Return the factors that are known and change something."""
    return [factor for factor in factors if factor is not None and abs(factor - 1) > 1e-6]


def _identity(point: Point) -> Any:
    return point.path, tuple(id(atom) for atom in point.atoms)


def _factor(run: _Run, point: Point, is_divisor: bool, each: np.ndarray) -> float | None:
    """Return a factor, or None.

    If it differs between the times, as rates over depth in a scan, it is the one that would do the
    same for the mean of the shares that are kept.
    """
    numbers = run.read(point, "number").astype(np.float64)
    if not numbers.size or not np.all(np.isfinite(numbers)) or np.any(numbers == 0):
        return None
    factors = 1 / numbers if is_divisor else numbers
    if np.ptp(factors) == 0:
        return float(factors[0])
    if factors.shape != each.shape or not each.mean():
        return None
    return float((factors * each).mean() / each.mean())


def _scale_tolerance(application: Application) -> float:
    """Return by how much the scale may be off: the precision of the data's dtype."""
    dtype = application.dtype
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return 1e-5
    return max(2 * float(jnp.finfo(dtype).eps), 1e-5)


def _keys(run: _Run, decision: Decision, times: int) -> tuple[frozenset, ...]:
    """Return, for each time, the keys of the draws of a decision."""
    keys: list[set] = [set() for _ in range(times)]
    for draw, words in _words_of(run, decision):
        for time in range(times):
            if len(words) in (1, times):
                rows = words[time if len(words) == times else 0]
                keys[time] |= {(draw.generator, *row) for row in rows.tolist()}
    return tuple(frozenset(key) for key in keys)


def _words_of(run: _Run, decision: Decision) -> Iterator[tuple[Draw, np.ndarray]]:
    """Iterate over the draws of a decision and the words of their keys: (times, keys, words)."""
    for name in decision.value.draws:
        draw = run.graph.draws.get(name)
        if draw is not None and draw.key_point is not None:
            yield draw, run.read(draw.key_point, "words")


def _has_repeated_keys(run: _Run, decision: Decision) -> bool:
    """Whether a draw that takes several keys takes one of them twice."""
    return any(
        len(np.unique(rows, axis=0)) < len(rows)
        for _, words in _words_of(run, decision)
        for rows in words[:1]
    )


def _match_recomputations(
    forward: list[Site], backward: list[Site]
) -> tuple[list[Site], list[Site]]:
    """Give the decisions of the backward pass to those of the forward pass with equal masks."""
    sites, strays = list(forward), []
    made = {mask for site in forward for mask in mask_names(site)}
    for site in backward:
        again = mask_names(site)
        partners = [n for n, other in enumerate(sites) if again & mask_names(other)]
        if not again <= made:
            partners = [n for n, other in enumerate(sites) if _is_same_in_other_parts(other, site)]
        if partners:
            sites[partners[0]] = _count_recomputation(sites[partners[0]])
        elif any(_could_be_recomputed(other, site) for other in forward):
            strays.append(site)
        else:
            sites.append(site)
    return sites, strays


def _is_same_in_other_parts(site: Site, again: Site) -> bool:
    """Whether two sites decide the same in other parts, such as a batch and its rows in turn."""
    has_other_shape = site.shape != again.shape
    return has_other_shape and len(_keys_of(site)) > 0 and _extent(site) == _extent(again)


def _extent(site: Site) -> tuple[frozenset, int, int]:
    """Return the keys of a site, and how many elements it decides and keeps."""
    size = math.prod(site.shape) * site.times
    return _keys_of(site), size, round(site.kept * size)


def _keys_of(site: Site) -> frozenset:
    """Return the keys of a site that JAX's generators take; those of this package have counters."""
    keys = frozenset(key for each in site.keys for key in each)
    return frozenset(key for key in keys if key[0] != "dropout_jax")


def _could_be_recomputed(site: Site, again: Site) -> bool:
    is_same_size = math.prod(site.shape) == math.prod(again.shape)
    is_same = site.location == again.location or is_same_size or _keys_of(site) & _keys_of(again)
    return site.is_active and bool(is_same)


def _count_recomputation(site: Site) -> Site:
    return dataclasses.replace(site, recomputations=site.recomputations + 1)


def mask_names(site: Site) -> set[tuple[int, ...]]:
    """Return what tells the masks of a site from others: (size, hash), for each time."""
    size = math.prod(site.shape)
    return {(size, int(first), int(second)) for first, second in site.hashes}


def _build_noise(run: _Run, uses: Mapping[Any, Any]) -> tuple[Noise, ...]:
    graph = run.graph
    made = [graph.decisions[name] for name in uses if name in graph.decisions]
    used = {draw for decision in made for draw in decision.value.draws}
    noise = [
        Noise(
            find_location(draw.trail),
            draw.generator,
            draw.shape,
            graph.noise.get(name, "other"),
            _keys_of_draw(run, draw),
        )
        for name, draw in graph.draws.items()
        if name not in used
    ]
    return tuple(noise)


def _keys_of_draw(run: _Run, draw: Draw) -> frozenset:
    """Return the keys that a draw takes in a forward pass, at all times."""
    if draw.key_point is None or is_backward(draw.trail):
        return frozenset()
    words = run.read(draw.key_point, "words")
    rows = words.reshape(-1, words.shape[-1]).tolist() if words.size else []
    return frozenset((draw.generator, *row) for row in rows)


def _build_opaque(run: _Run) -> tuple[OpaqueCall, ...]:
    return tuple(
        OpaqueCall(
            find_location(call.trail),
            find_callers(call.trail),
            call.primitive,
            call.params,
            _names_of(run, call.seed_arguments),
            None if call.seed_point is None else run.read(call.seed_point, "words"),
            call.is_random,
            is_backward(call.trail),
        )
        for call in run.graph.opaque
    )
