"""Ask a compiled program: which operations communicate, and how much memory it needs."""

import re

import jax

_COLLECTIVE = re.compile(
    r"all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
)


def find_collectives(compiled: jax.stages.Compiled) -> list[str]:
    text = compiled.as_text()
    assert text is not None
    return _COLLECTIVE.findall(text)


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes
