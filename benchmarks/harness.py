"""Interleaved timing of frameworks, each in its own process; ratios, results and their JSON.

Each process also times the floor: memory pages and addresses differ from process to process and
change times by up to a factor of two, which cancels in the ratio.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.progress import track

RESULTS = Path(__file__).parent / "results"


class Worker:
    """A process that runs one framework."""

    def __init__(self, framework):
        path = Path(__file__).parent / "worker.py"
        command = [sys.executable, "-W", "ignore", str(path), framework]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None, "a pipe was asked for"
        assert self.process.stdout is not None, "a pipe was asked for"
        self.requests, self.answers = self.process.stdin, self.process.stdout
        self.versions = self._read()

    def ask(self, **request):
        """Send a request and wait for its answer."""
        self.requests.write(json.dumps(request) + "\n")
        self.requests.flush()
        return self._read()

    def _read(self):
        line = self.answers.readline()
        if not line:
            raise RuntimeError(f"the worker died: {self.process.args}")
        return json.loads(line)

    def close(self):
        """End the process."""
        self.requests.close()
        self.process.wait()


def measure(frameworks, cases, *, rounds, budget_s=0.25):
    """Time every case in every framework, in turn; a row for each case and framework."""
    workers = {name: Worker(name) for name in frameworks}
    rows = []
    for case in track(cases, "measuring"):
        present = {n: w for n, w in workers.items() if "missing" not in w.ask(build=case)}
        ratios = {name: [] for name in present}
        calls = {
            name: calls_within(worker.ask(calls=1), budget_s) for name, worker in present.items()
        }
        for _ in range(rounds):
            for name, worker in present.items():
                times = worker.ask(calls=calls[name])
                ratios[name].append(np.median(times["seconds"]) / np.median(times["floor"]))
        rows += [case | {"framework": name, "to_floor": quartiles(r)} for name, r in ratios.items()]
    versions = {name: worker.versions for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    return {"environment": describe_environment(versions), "rows": rows}


def calls_within(times, budget_s):
    """The number of calls that fit the budget, at least one."""
    return max(1, min(200, int(budget_s / max(times["seconds"] + times["floor"]))))


def quartiles(ratios):
    """The quartiles, to three decimals."""
    return [round(float(q), 3) for q in np.quantile(ratios, [0.25, 0.5, 0.75])]


def describe_environment(versions):
    """The facts that a reader needs to compare with another machine."""
    first = next(iter(versions.values()))
    return {
        "device": first["device"],
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": first["jax"],
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {name: one["version"] for name, one in versions.items()},
    }


def _processor_name():
    info = Path("/proc/cpuinfo")
    names = [li for li in info.read_text().splitlines() if li.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.machine()


def save(result, name):
    """Write results/NAME-DEVICE.json and say so."""
    device = result["environment"]["device"].lower().replace(" ", "-")
    path = RESULTS / f"{name}-{device}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}")
    return path
