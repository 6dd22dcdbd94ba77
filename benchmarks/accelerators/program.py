"""A program that is compiled for a chip, and what must hold of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax

from targets import Chip

MIB = 2**20


@dataclass(frozen=True)
class Program:
    """A program, how to lower it, and what must hold of it."""

    kind: str
    name: str
    lower: Callable[[], jax.stages.Lowered]
    bound_mib: float
    """its peak memory on one device must not exceed this"""
    same_collectives: str | None = None
    """all programs of a group have the same collectives"""
    attention_kernels: int = 0
    """how many it must call at least, compiled for the chip and not interpreted"""
    has_collectives: bool = True
    """False: it must have none"""
    rival: str | None = None
    """the name of a program of the kind that must not take fewer estimated cycles"""
    elements: int = 0
    """those of its argument"""
    whole_arrays: int | None = None
    """how many arrays of so many elements it writes"""

    def command(self, chip: Chip, *, full: bool) -> str:
        """The line that compiles this program alone."""
        script = f"{chip.venv}/bin/python benchmarks/accelerators/compile.py {chip.name}"
        return f'{script} --only "{self.kind} {self.name}"' + (" --full" if full else "")
