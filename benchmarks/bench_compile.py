"""The cost before the first step: importing dropout_jax, and compiling functions that use it.

    python benchmarks/bench_compile.py      (make bench runs it)

Seconds to compile jit(dropout), ours and Flax's in turn; to compile the default trainer's step,
with and without dropout; and to import dropout_jax after jax, each in a fresh process. Writes
results/compile-DEVICE.json.
"""

import dataclasses
import subprocess
import sys
import time

import harness
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dropout_jax import dropout
from minigpt.config import PRESETS, DropoutConfig
from minigpt.data import make_batch
from minigpt.training import build_train_functions

REPEATS, VOCABULARY = 9, 65
IMPORT = """
import time, jax
begin = time.perf_counter()
import dropout_jax
print(time.perf_counter() - begin)
"""


def time_op_compilation():
    """Time the compilation of jit(dropout) at a new shape, ours and Flax's in turn."""
    layer = nnx.Dropout(0.1, deterministic=False)
    fns = {
        "dropout_jax": lambda x, k: dropout(x, 0.1, key=k),
        "flax": lambda x, k: layer(x, rngs=k),
    }
    times = {name: [] for name in fns}
    for i in range(REPEATS):
        for name, fn in fns.items():
            x = jnp.ones((64 + i, 1024))
            times[name].append(
                time_call(lambda x=x, fn=fn: compile_function(jax.jit(fn), x, jax.random.key(0)))
            )
    return {name: harness.quartiles(each) for name, each in times.items()}


def time_step_compilation():
    """Time the compilation of the default preset's step, at two rates."""
    quartiles_by_rate = {}
    for rate in (0.0, 0.2):
        config = PRESETS["shakespeare-char-cpu"]
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, dropout=DropoutConfig.uniform(rate))
        )
        times = []
        for _ in range(3):
            jax.clear_caches()
            training = build_train_functions(config, VOCABULARY)
            times.append(time_call(lambda t=training, c=config: compile_train_step(t, c)))
        quartiles_by_rate[f"dropout {rate}"] = harness.quartiles(times)
    return quartiles_by_rate


def compile_train_step(training, config):
    text = np.zeros(10_000, np.uint16)
    batch = make_batch(text, 0, 0, config.batch_size, config.model.block_size)
    compile_function(training.train_step, training.state, batch, jax.random.key(0))


def compile_function(fn, *args):
    return fn.lower(*args).compile()


def time_call(fn):
    start_time = time.perf_counter()
    fn()
    return time.perf_counter() - start_time


def time_import():
    """Time the import of dropout_jax after that of jax."""
    command = [sys.executable, "-c", IMPORT]
    runs = [
        subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(REPEATS)
    ]
    return harness.quartiles([float(run.stdout) for run in runs])


def main():
    result = {
        "quartiles_in_seconds": {
            "compile jit(dropout)": time_op_compilation(),
            "compile the default trainer's step": time_step_compilation(),
            "import dropout_jax after jax": time_import(),
        }
    }
    versions = {
        "dropout_jax": {
            "version": "",
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        }
    }
    harness.save({"environment": harness.describe_environment(versions)} | result, "compile")
    print(result)


if __name__ == "__main__":
    main()
