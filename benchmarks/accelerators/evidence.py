"""What a compiled program tells: collectives, memory, cycles, registers and spills."""

from __future__ import annotations

import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from minigpt.distributed import COLLECTIVES, count_collectives

MASK_SIZE = 1024  # elements; a key has 2 or 4 words, and no mask here is smaller

ATTENTION = "forward_kernel", "query_kernel", "key_kernel", "bias_kernel"  # of _triton.py

_COLLECTIVE_LINE = re.compile(rf"= (.*?) (?:{'|'.join(COLLECTIVES)})(?:-start)?\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KERNEL = re.compile(r'custom_call_target="(?:tpu_custom_call|__gpu\$xla\.gpu\.triton)"')
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r" (\w+) grid: .* shared_memory: (\d+) bytes")
_SPILLED = re.compile(r"(\d+) bytes spill (?:stores|loads)")


def count_mask_collectives(text: str) -> int:
    """Collectives that carry an array of the size and dtype of a mask or of its words."""
    return sum(
        math.prod(int(size) for size in shape.split(",") if size) >= MASK_SIZE
        for line in text.splitlines()
        if (call := _COLLECTIVE_LINE.search(line))
        for shape in re.findall(r"\b(?:pred|u32)\[([\d,]*)\]", call[1])
    )


def count_arrays_written(text: str, elements: int) -> int:
    """Arrays of so many elements that the program's kernels write to memory."""
    entry = text[text.index("ENTRY") :]
    shapes = re.findall(r" = \(?\w+\[([\d,]+)\]\S* (?:fusion|copy|broadcast|custom-call)\(", entry)
    return sum(math.prod(map(int, shape.split(","))) == elements for shape in shapes)


def sum_cycles(text: str) -> int | None:
    """XLA:TPU's estimate; the body of a loop counts once."""
    cycles = [int(number) for number in _CYCLES.findall(text)]
    return sum(cycles) if cycles else None


def cpu_seconds() -> float:
    """Seconds of CPU of this process and its children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def limit_cpu_seconds(limit: int) -> None:
    """Let the next `limit` seconds of CPU end this process, as a compiler can go on for ever.

    A signal handler of Python would wait for the compiler; this is the kernel's default.
    """
    used = math.ceil(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + limit, resource.RLIM_INFINITY))


def measure(lower: Any, limit: int = 120, elements: int = 0) -> dict[str, Any]:
    """Compile what `lower()` gives, in `limit` s of CPU; an error becomes the entry "error"."""
    start = cpu_seconds()
    limit_cpu_seconds(limit)
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
        "kernels": len(_KERNEL.findall(text)),
        "cycles": sum_cycles(text),
        "arrays_written": count_arrays_written(text, elements),
    }


class PtxDump:
    """The PTX that XLA writes while it compiles for a GPU; made before JAX starts."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_dump_to={self.folder}"

    def assemble(self) -> dict[str, Any]:
        """Registers, shared memory and spills of the PTX since the last call, by ptxas and XLA.

        The figures of a program are the largest of its kernels'. Those of the attention kernels are
        in "attention_kernels" by name. A spill is what one thread stores and loads again.
        """
        files = [path for path in sorted(self.folder.glob("*.ptx")) if path.stat().st_size]
        kernels = dict(self._ptxas(path) for path in files)
        for path in self.folder.glob("*.thunk_sequence.txt"):
            for name, size in _SHARED.findall(path.read_text()):
                kernels.setdefault(name, {})["shared_bytes"] = int(size)
        for path in self.folder.iterdir():
            path.unlink()
        figures = kernels.values()
        return {
            "registers": max((x.get("registers", 0) for x in figures), default=0),
            "shared_bytes": max((x.get("shared_bytes", 0) for x in figures), default=0),
            "spill_bytes": max((x.get("spill_bytes", 0) for x in figures), default=0),
            "attention_kernels": {name: kernels[name] for name in ATTENTION if name in kernels},
        }

    def _ptxas(self, path: Path) -> tuple[str, dict[str, int]]:
        ptxas = next(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cuda_nvcc/bin/ptxas"))
        command = [ptxas, "-v", "-arch=sm_90a", path, "-o", os.devnull]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        name = _ENTRY.findall(report)
        figures = {
            "registers": max(map(int, _USED.findall(report)), default=0),
            "spill_bytes": max(map(int, _SPILLED.findall(report)), default=0),
        }
        return (name or [path.stem])[0], figures
