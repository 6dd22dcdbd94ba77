"""What a compiled program tells: collectives, memory, cycles, registers and spills."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from minigpt.distributed import COLLECTIVES, count_collectives

MASK_SIZE = 1024  # elements; a key has 2 or 4 words, and no mask here is smaller

_COLLECTIVE_LINE = re.compile(rf"= (.*?) (?:{'|'.join(COLLECTIVES)})(?:-start)?\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_SPILLED = re.compile(r"(\d+) bytes spill (?:stores|loads)")


def count_mask_collectives(text: str) -> int:
    """Collectives that carry an array of the size and dtype of a mask or of its words."""
    return sum(
        math.prod(int(size) for size in shape.split(",") if size) >= MASK_SIZE
        for line in text.splitlines()
        if (call := _COLLECTIVE_LINE.search(line))
        for shape in re.findall(r"\b(?:pred|u32)\[([\d,]*)\]", call[1])
    )


def sum_cycles(text: str) -> int | None:
    """XLA:TPU's estimate; the body of a loop counts once."""
    cycles = [int(number) for number in _CYCLES.findall(text)]
    return sum(cycles) if cycles else None


def cpu_seconds() -> float:
    """Seconds of CPU of this process and its children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(lower: Any) -> dict[str, Any]:
    """Compile what `lower()` gives; an error becomes the entry "error"."""
    start = cpu_seconds()
    try:
        compiled: jax.stages.Compiled = lower().compile()
    except Exception as error:  # whatever a compiler raises is what this reports
        return {"error": f"{type(error).__name__}: {error}"[:400], "cpu_s": cpu_seconds() - start}
    text, memory = compiled.as_text() or "", compiled.memory_analysis()
    assert memory is not None
    return {
        "cpu_s": round(cpu_seconds() - start, 1),
        "peak_mib": round(memory.peak_memory_in_bytes / 2**20, 2),
        "collectives": count_collectives(text),
        "mask_collectives": count_mask_collectives(text),
        "cycles": sum_cycles(text),
    }


class PtxDump:
    """The PTX that XLA writes while it compiles for a GPU; made before JAX starts."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_dump_to={self.folder}"

    def assemble(self) -> dict[str, int]:
        """Registers, shared memory and spills of the PTX since the last call, by ptxas."""
        reports = [self._ptxas(path) for path in sorted(self.folder.glob("*.ptx"))]
        for path in self.folder.iterdir():
            path.unlink()
        report = "\n".join(reports)
        return {
            "registers": max(map(int, _USED.findall(report)), default=0),
            "shared_bytes": max(map(int, _SHARED.findall(report)), default=0),
            "spill_bytes": sum(map(int, _SPILLED.findall(report))),
        }

    def _ptxas(self, path: Path) -> str:
        ptxas = next(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cuda_nvcc/bin/ptxas"))
        command = [ptxas, "-v", "-arch=sm_90a", path, "-o", os.devnull]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr
