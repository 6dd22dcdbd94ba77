"""The findings of opaque calls, of which the seeds are known and the masks are not: D03 to D05."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from dropout_jax.audit._findings import Finding
from dropout_jax.audit._record import OpaqueCall, Record


def find_seed_faults(records: Sequence[Record]) -> Iterator[Finding]:
    """D04: a call has one seed at all steps. D05: two calls of the forward pass have one seed."""
    first_use: dict[Hashable, int] = {}
    for number, call in enumerate(records[0].opaque):
        if not call.is_random or call.is_backward:
            continue
        calls = [record.opaque[number] for record in records if number < len(record.opaque)]
        is_compared = len(calls) > 1 or not call.seed_arguments
        if is_compared and all(_have_equal_seeds(call, other) for other in calls):
            yield _same_at_every_step(call)
        elif call.seeds is not None:
            words = [(row.tobytes(), row.size) for row in call.seeds]
            uses = [first_use.setdefault((*word, call.primitive), number) for word in words]
            if len(set(words)) < len(words) or set(uses) != {number}:
                yield _reused(call)


def _have_equal_seeds(call: OpaqueCall, other: OpaqueCall) -> bool:
    if call.seeds is None or other.seeds is None:
        return bool(call.params.get("seed") == other.params.get("seed"))
    return np.array_equal(call.seeds, other.seeds)


def _same_at_every_step(call: OpaqueCall) -> Finding:
    return Finding(
        "D04",
        "error",
        call.location,
        f"{call.description} draws the same mask at every step: its seed does not change.",
        "Pass a seed that is made of the key of the step, as an array. If the kernel takes a "
        "Python number only, it cannot be used for training with dropout.",
        callers=call.callers,
    )


def _reused(call: OpaqueCall) -> Finding:
    return Finding(
        "D05",
        "error",
        call.location,
        f"{call.description} has the seed of another call, or of another turn of its loop.",
        "Give each its own: draw the seed with jax.random.fold_in(key, number of the layer).",
        callers=call.callers,
    )


def find_random_calls(record: Record) -> Iterator[Finding]:
    """D03: the evaluation has an opaque call that draws random numbers."""
    for call in record.opaque:
        if call.is_random:
            yield Finding(
                "D03",
                "error",
                call.location,
                f"The evaluation has {call.description}, which is random.",
                "Turn it off: a rate of 0, deterministic=True, model.eval().",
                callers=call.callers,
            )
