"""What an audit of a training step costs: its time, and its memory beside that of the step.

    python benchmarks/bench_audit.py [--full]

Each measurement is a process of its own, which builds a preset's steps with dropout 0.1 and audits
them as `minigpt audit` does, or makes three steps: seconds of the clock and of the processors, with
all compilation, and the peak of the resident memory. --full adds gpt2 (124M) at batch 1. Writes
results/audit-DEVICE.json. On a machine that others use, the seconds of the processors say more.

    python benchmarks/bench_audit.py audit gpt2 1      (one measurement, as JSON)
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time

import harness
import jax
import numpy as np

from minigpt.config import PRESETS, DropoutConfig
from minigpt.data import make_batch
from minigpt.tasks.audit import audit_steps
from minigpt.training import build_train_functions

CASES = (("shakespeare-char-cpu", 12), ("shakespeare-char-cpu at every site", 12))
FULL = (("gpt2", 1),)
VOCABULARY = 65  # of a preset that has none


def settings_of(case, batch_size):
    preset, _, is_everywhere = case.partition(" ")
    config = PRESETS[preset]
    dropout = DropoutConfig.uniform(0.1)
    if is_everywhere:
        dropout = dataclasses.replace(dropout, attn_context=0.1, mlp_hidden=0.1, drop_path=0.1)
    model = dataclasses.replace(config.model, dropout=dropout)
    return dataclasses.replace(config, batch_size=batch_size, mesh="data=1", model=model)


def measure(work, case, batch_size):
    """Audit the steps, or make some, in this process."""
    config = settings_of(case, batch_size)
    vocabulary = config.model.vocab_size or VOCABULARY
    text = np.random.default_rng(0).integers(0, vocabulary, 20_000, dtype=np.int32)
    begin = time.perf_counter(), time.process_time()
    if work == "audit":
        findings = audit_steps(config, vocabulary, text)
        assert not findings.at_least("warning"), findings
    else:
        make_steps(config, vocabulary, text)
    return {
        "seconds": round(time.perf_counter() - begin[0], 1),
        "processor_seconds": round(time.process_time() - begin[1], 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def make_steps(config, vocabulary, text):
    steps, key = build_train_functions(config, vocabulary), jax.random.key(0)
    state = steps.state
    steps = steps._replace(state=None)
    for step in range(3):
        batch = make_batch(text, 0, step, config.batch_size, config.model.block_size)
        state, _ = steps.train_step(state, batch, key)
    jax.block_until_ready(state)


def measure_elsewhere(work, case, batch_size):
    """Measure in a process of its own, which compiles everything."""
    command = [sys.executable, __file__, work, case, str(batch_size)]
    environment = {
        name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name
    }
    environment["XLA_FLAGS"] = ""
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def main():
    if len(sys.argv) > 2:
        work, case, batch_size = sys.argv[1:]
        print(json.dumps(measure(work, case, int(batch_size))))
        return
    rows = []
    for case, batch_size in (*CASES, *(FULL if "--full" in sys.argv else ())):
        row = {work: measure_elsewhere(work, case, batch_size) for work in ("audit", "step")}
        row["memory_to_step"] = round(row["audit"]["peak_mb"] / row["step"]["peak_mb"], 2)
        rows.append({"case": case, "batch_size": batch_size} | row)
        print(rows[-1])
    device = {"version": "", "device": jax.devices()[0].device_kind, "jax": jax.__version__}
    environment = harness.describe_environment({"dropout_jax": device})
    harness.save({"environment": environment, "rows": rows}, "audit")


if __name__ == "__main__":
    main()
