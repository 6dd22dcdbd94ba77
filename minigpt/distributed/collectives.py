"""Count what a compiled program communicates."""

from __future__ import annotations

import re

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")

_CALL = re.compile(rf"= .*? ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")


def count_collectives(text: str) -> dict[str, int]:
    """Count the collectives of a compiled program's text by kind.

    A channel counts once: the text for a TPU names one several times.
    """
    channels: dict[str, set[str]] = {}
    for line in text.splitlines():
        if call := _CALL.search(line):
            channel = _CHANNEL.search(line)
            channels.setdefault(call[1], set()).add(channel[1] if channel else line)
    return {kind: len(channels[kind]) for kind in sorted(channels)}
