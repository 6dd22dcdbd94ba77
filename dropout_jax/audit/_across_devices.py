"""D08: masks that devices should have in common and do not, or have in common and should not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping

from dropout_jax.audit._findings import Finding
from dropout_jax.audit._one_run import Declared, identify_mask, is_sharing_meant
from dropout_jax.audit._record import Record, Site


def find_device_faults(site: Site, declared: Declared) -> Iterator[Finding]:
    """D08: devices with the same data drop different elements, or those with different data agree.

    Devices have different data along an axis of the mesh where an input of the shard_map is split
    along it, and until a sum over that axis.
    """
    if not site.is_active:
        return
    for number, name in enumerate(site.mesh_axes):
        groups = _group_along(site, number)
        sizes = {len(masks) for masks in groups}
        if sizes in ({0}, {1}) or any(None in masks for masks in groups):
            continue
        if name in site.data_varies_along:
            if all(len(set(masks)) < len(masks) for masks in groups):
                yield _equal(site, name, declared)
        elif any(len(set(masks)) > 1 for masks in groups):
            yield _different(site, name)


def _group_along(site: Site, axis: int) -> list[list[Hashable | None]]:
    """Return the masks of the devices along one axis of the mesh: for each turn of the others."""
    groups: dict[tuple, list[Hashable | None]] = defaultdict(list)
    turns: dict[tuple, int] = defaultdict(int)
    for time, indices in enumerate(site.devices.tolist()):
        device = tuple(indices)
        others = device[:axis] + device[axis + 1 :]
        groups[(*others, turns[device])].append(identify_mask(site, time))
        turns[device] += 1
    return list(groups.values())


def _equal(site: Site, axis: str, declared: Declared) -> Finding:
    is_note = is_sharing_meant(site, declared)
    return Finding(
        "D08",
        "note" if is_note else "error",
        site.location,
        f"Devices along the mesh axis {axis!r} have different data and the same mask of shape "
        f"{site.shape}.",
        f"Fold the device into the key: jax.random.fold_in(key, jax.lax.axis_index({axis!r})).",
        callers=site.callers,
    )


def _different(site: Site, axis: str) -> Finding:
    return Finding(
        "D08",
        "error",
        site.location,
        f"Devices along the mesh axis {axis!r} have the same data and different masks of shape "
        f"{site.shape}: their copies are no longer equal.",
        f"Make the key without the index of the device along {axis!r}.",
        callers=site.callers,
    )


def find_process_faults(records: Mapping[int, Record]) -> Iterator[Finding]:
    """D08: processes that run one program draw different masks for the arrays they share."""
    first = records.get(0)
    for process, record in records.items():
        for site, other in zip(first.sites if first else (), record.sites, strict=False):
            if site.is_active and _masks_of(site) != _masks_of(other):
                yield Finding(
                    "D08",
                    "error",
                    site.location,
                    f"Process {process} draws another mask of shape {site.shape} than process 0.",
                    "Pass the same key to the jitted step on all processes: make it of the seed "
                    "and the step, without jax.process_index().",
                    callers=site.callers,
                )


def _masks_of(site: Site) -> list[Hashable | None]:
    return [identify_mask(site, time) for time in range(site.times)]
