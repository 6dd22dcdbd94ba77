"""Check dropout_jax and minigpt on a GPU: what is dropped, gradients, speed and memory.

    python examples/check_gpu.py [--only NAME ...] [--out FILE]

Writes benchmarks/results/gpu-DEVICE.json: the device, the versions, and a row for each figure.
Peers are measured in the same run: jax.random.bernoulli, Flax, jax.nn's attention, and PyTorch
where it sees the GPU. A time is the median of five; the quartiles are beside it.
"""

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import dropout_jax
from dropout_jax import dot_product_attention, keep_mask, reference

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
RATE = 0.1
KEY = jax.random.key(0)


def normal(seed, *shape, dtype="float32"):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


# --- what is dropped


def check_masks():
    """Masks against the NumPy oracle, bit for bit."""
    shapes = (7,), (100, 3), (64, 128), (4, 70, 33), (2, 3, 40, 5), (1024, 768)
    rates = 1e-3, 0.1, 0.25, 0.5, 0.9
    equal = 0
    for shape in shapes:
        for rate in rates:
            ours = np.asarray(keep_mask(KEY, rate, shape))
            equal += np.array_equal(
                ours, reference.keep_mask(jax.random.key_data(KEY), rate, shape)
            )
    yield {"figure": equal, "of": len(shapes) * len(rates), "unit": "masks equal to the oracle's"}


def check_dropped_weights():
    """The weights that the kernel drops: the output is the weights where the value is one-hot."""
    for queries, keys, dim in ((256, 256, 256), (1000, 200, 256), (256, 64, 64)):
        query, key = normal(1, 2, queries, 3, dim), normal(2, 2, keys, 3, dim)
        value = jnp.broadcast_to(jnp.eye(keys, dim)[None, :, None], key.shape)
        options = {"dropout_rate": RATE, "dropout_key": KEY, "implementation": "kernel"}
        weights = dot_product_attention(query, key, value, scale=0.01, **options)[..., :keys]
        dropped = np.asarray(weights.transpose(0, 2, 1, 3) == 0)
        wrong = np.sum(dropped == np.asarray(keep_mask(KEY, RATE, (2, 3, queries, keys))))
        yield {
            "what": f"{queries} x {keys}",
            "figure": int(wrong),
            "unit": "weights not as keep_mask's",
        }


# --- attention: errors

CASES = {
    "causal": {"is_causal": True},
    "all keys": {},
    "window": {"local_window_size": (200, 10), "is_causal": True},
    "grouped heads": {"is_causal": True, "key_heads": 2},
    "1000 queries": {"is_causal": True, "length": 1000},
    "lengths": {"key_value_seq_lengths": np.array([100, 512])},
    "bias": {"bias": (1, 4, 512, 512)},
    "bias of keys": {"bias": (2, 1, 1, 512)},
    "row offset": {"is_causal": True, "dropout_row_offset": 3},
    "evaluation": {"is_causal": True, "dropout_key": None},
    "dim 32": {"is_causal": True, "dim": 32},
    "dim 80": {"is_causal": True, "dim": 80},
    "dim 128": {"is_causal": True, "dim": 128},
    "dim 256": {"is_causal": True, "dim": 256},
}


def differentiate(implementation, options, arrays, weights):
    """The output and the gradients of sum(output * weights)."""

    def total(arrays):
        out = dot_product_attention(*arrays, implementation=implementation, **options)
        return (out.astype(jnp.float32) * weights).sum(), out

    gradients, out = jax.jit(jax.grad(total, has_aux=True))(arrays)
    return [np.asarray(x, np.float64) for x in (out, *jax.tree.leaves(gradients))]


def relative_errors(results, truth):
    return [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(results, truth, strict=True)]


def check_errors():
    """Errors relative to the naive form in full float32, and that form's own beside them.

    float32 products are in TF32, JAX's default on this device, where truth is not.
    """

    def check(case, dtype):
        options = {"dropout_rate": RATE, "dropout_key": KEY} | CASES[case]
        length, dim = options.pop("length", 512), options.pop("dim", 64)
        key_heads, bias = options.pop("key_heads", 4), options.pop("bias", None)
        arrays = [normal(1, 2, length, 4, dim), normal(2, 2, length, key_heads, dim)]
        arrays += [normal(3, 2, length, key_heads, dim)] + ([normal(4, *bias)] if bias else [])
        narrow = [x.astype(dtype) for x in arrays]
        weights = normal(5, *arrays[0].shape)
        wide = [x.astype(jnp.float32) for x in narrow]
        with jax.default_matmul_precision("highest"):
            truth = differentiate("naive", options, wide, weights)
        ours, naive = (
            relative_errors(differentiate(name, options, narrow, weights), truth)
            for name in ("kernel", "naive")
        )
        names = ("out", "d_query", "d_key", "d_value", "d_bias")
        return [
            {
                "what": f"{case}, {dtype}, {name}",
                "figure": float(f"{a:.2g}"),
                "naive": float(f"{b:.2g}"),
            }
            for name, a, b in zip(names, ours, naive, strict=False)
        ]

    jobs = [(case, dtype) for case in CASES for dtype in ("float32", "bfloat16")]
    with ThreadPoolExecutor(12) as pool:
        results = pool.map(catch(lambda job: check(*job)), jobs)
        for job, rows in zip(jobs, results, strict=True):
            if isinstance(rows, str):
                yield {"what": f"{job[0]}, {job[1]}", "error": rows}
            else:
                yield from (row | {"unit": "relative error"} for row in rows)


def catch(fn):
    """Return the error's words instead of raising it, so that one failure ends nothing else."""

    @functools.wraps(fn)
    def call(*args):
        try:
            return fn(*args)
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:300]}"

    return call


# --- times


def time_all(programs, least=0.05):
    """Quartiles in ms of each program, in five rounds in turn; a program is (call, wait)."""
    counts = {}
    for name, (call, wait) in programs.items():
        wait(call())
        start_time = time.perf_counter()
        wait(call())
        counts[name] = max(1, min(100, int(least / (time.perf_counter() - start_time))))
    times = {name: [] for name in programs}
    for _ in range(5):
        for name, (call, wait) in programs.items():
            start_time = time.perf_counter()
            result = None
            for _ in range(counts[name]):
                result = call()
            wait(result)
            times[name].append((time.perf_counter() - start_time) / counts[name] * 1e3)
    return {
        name: [round(float(q), 4) for q in np.quantile(t, (0.25, 0.5, 0.75))]
        for name, t in times.items()
    }


def compile_all(functions):
    """Compile {name: (function, arguments)} side by side; failures are given as words."""

    @catch
    def build(item):
        fn, args = item
        compiled = jax.jit(fn).lower(*args).compile()
        memory = compiled.memory_analysis()
        return (lambda: compiled(*args)), memory.temp_size_in_bytes if memory else 0

    with ThreadPoolExecutor(12) as pool:
        built = dict(zip(functions, pool.map(build, functions.values()), strict=True))
    errors = {name: b for name, b in built.items() if isinstance(b, str)}
    calls = {n: (b[0], jax.block_until_ready) for n, b in built.items() if n not in errors}
    return calls, {n: b[1] for n, b in built.items() if n not in errors}, errors


def measure_dropout():
    """Dropout against bernoulli, Flax, PyTorch, and x * 2, in ms."""
    for shape in ((8192, 4096), (8, 1024, 768)):
        for dtype in ("bfloat16", "float32"):
            yield from _measure_dropout(shape, dtype)


def _measure_dropout(shape, dtype):
    from flax import nnx

    x, g = normal(1, *shape, dtype=dtype), normal(2, *shape, dtype=dtype)

    def bernoulli(x, key):
        return jnp.where(jax.random.bernoulli(key, 1 - RATE, x.shape), x / (1 - RATE), 0).astype(
            x.dtype
        )

    layer = nnx.Dropout(RATE, deterministic=False)
    ops = {
        "dropout_jax": lambda x, key: dropout_jax.dropout(x, RATE, key=key),
        "bernoulli": bernoulli,
        "flax": lambda x, key: layer(x, rngs=key),
        "x * 2": lambda x, key: x * 2,
        "gelu, dropout, add": lambda x, key: dropout_jax.dropout(jax.nn.gelu(x), RATE, key=key) + x,
        "gelu, add": lambda x, key: jax.nn.gelu(x) + x,
    }

    def gradient(op):
        return lambda x, key, g: jax.vjp(lambda x: op(x, key), x)[1](g)[0]

    forward = {f"{n}, forward": (op, (x, KEY)) for n, op in ops.items()}
    both = {f"{n}, gradient": (gradient(op), (x, KEY, g)) for n, op in ops.items()}
    calls, _, errors = compile_all(forward | both)
    calls |= _torch_dropout(shape, dtype)
    where = f"{'x'.join(map(str, shape))} {dtype}"
    for name, quartiles in time_all(calls).items():
        yield {
            "what": f"{name}, {where}",
            "figure": quartiles[1],
            "quartiles": quartiles,
            "unit": "ms",
        }
    for name, error in errors.items():
        yield {"what": f"{name}, {where}", "error": error}


def _torch_dropout(shape, dtype):
    torch = import_torch()
    if torch is None:
        return {}
    x = torch.randn(shape, device="cuda", dtype=getattr(torch, dtype), requires_grad=True)
    g = torch.randn_like(x)

    def forward():
        with torch.no_grad():
            return torch.nn.functional.dropout(x, RATE)

    def gradient():
        return torch.autograd.grad(torch.nn.functional.dropout(x, RATE), x, g)

    def wait(_):
        torch.cuda.synchronize()

    return {"torch, forward": (forward, wait), "torch, gradient": (gradient, wait)}


def import_torch():
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


ATTENTION = [(2048, 128, "bfloat16"), (2048, 64, "float32")]
ATTENTION += [(length, 64, "bfloat16") for length in (1024, 2048, 4096, 16384)]
MAX_SQUARE = 2048  # for the implementations that keep all weights


def measure_attention():
    """Causal attention of 16,384 tokens, 12 heads, forward and with backward: ms, temporaries."""
    for length, dim, dtype in ATTENTION:
        yield from _measure_attention(length, dim, dtype)


def _measure_attention(length, dim, dtype):
    shape = (16384 // length, length, 12, dim)
    arrays = [normal(seed, *shape, dtype=dtype) for seed in (1, 2, 3, 4)]
    runs = {f"ours, kernel, {rate}": _ours("kernel", rate) for rate in (RATE, 0.0)}
    if jax.default_backend() == "gpu" and dtype != "float32":
        runs["jax.nn, cudnn, 0.0"] = _jax("cudnn")
    if (dim, dtype) == (64, "bfloat16"):
        runs |= {f"ours, blockwise, {rate}": _ours("blockwise", rate) for rate in (RATE, 0.0)}
        if length <= MAX_SQUARE:
            runs |= {f"ours, naive, {RATE}": _ours("naive", RATE), f"flax, {RATE}": _flax}
            runs["jax.nn, xla, 0.0"] = _jax("xla")

    def both(attend):
        return lambda q, k, v, g, key: jax.vjp(lambda *x: attend(*x, key), q, k, v)[1](g)

    functions = {f"{n}, forward": (fn, (*arrays[:3], KEY)) for n, fn in runs.items()}
    functions |= {f"{n}, with backward": (both(fn), (*arrays, KEY)) for n, fn in runs.items()}
    calls, memory, errors = compile_all(functions)
    calls |= _torch_attention(length, dim, dtype)
    where = f"T {length}, dim {dim}, {dtype}"
    for name, quartiles in time_all(calls, 0.03).items():
        temporaries = {"temporary_mib": round(memory[name] / 2**20, 1)} if name in memory else {}
        yield {
            "what": f"{name}, {where}",
            "figure": quartiles[1],
            "quartiles": quartiles,
            "unit": "ms",
        } | temporaries
    for name, error in errors.items():
        yield {"what": f"{name}, {where}", "error": error}


def _ours(implementation, rate):
    options = {"is_causal": True, "dropout_rate": rate, "implementation": implementation}
    return lambda q, k, v, key: dot_product_attention(q, k, v, dropout_key=key, **options)


def _jax(implementation):
    options = {"is_causal": True, "implementation": implementation}
    return lambda q, k, v, key: jax.nn.dot_product_attention(q, k, v, **options)


def _flax(q, k, v, key):
    from flax import nnx

    mask = jnp.tril(jnp.ones((q.shape[1],) * 2, bool))[None, None]
    options = {"dropout_rate": RATE, "broadcast_dropout": False, "deterministic": False}
    return nnx.dot_product_attention(q, k, v, mask=mask, dropout_rng=key, **options)


def _torch_attention(length, dim, dtype):
    torch = import_torch()
    if torch is None:
        return {}
    shape = (16384 // length, 12, length, dim)
    q, k, v, g = (torch.randn(shape, device="cuda", dtype=getattr(torch, dtype)) for _ in range(4))
    arrays = [x.requires_grad_() for x in (q, k, v)]
    attend = torch.nn.functional.scaled_dot_product_attention

    def forward(rate):
        with torch.no_grad():
            return attend(*arrays, dropout_p=rate, is_causal=True)

    def both(rate):
        return torch.autograd.grad(attend(*arrays, dropout_p=rate, is_causal=True), arrays, g)

    def wait(_):
        torch.cuda.synchronize()

    return {
        f"torch, SDPA, {rate}, {mode}": (functools.partial(fn, rate), wait)
        for rate in (RATE, 0.0)
        for mode, fn in (("forward", forward), ("with backward", both))
    }


# --- training


def measure_training():
    """Training steps of the gpt2 preset in bfloat16: tokens/s, MFU and peak memory."""
    for attention, rate in (
        ("kernel", RATE),
        ("kernel", 0.0),
        ("blockwise", RATE),
        ("naive", RATE),
    ):
        os.environ["DROPOUT_JAX_ATTENTION"] = attention
        row = catch(_measure_training)(attention, rate)
        yield {"what": f"gpt2, {attention}, {rate}", "error": row} if isinstance(row, str) else row
    del os.environ["DROPOUT_JAX_ATTENTION"]


def _measure_training(attention, rate, batch_size=16, steps=8):
    import dataclasses

    from minigpt.config import PRESETS, DropoutConfig
    from minigpt.data import Batch
    from minigpt.training import build_train_functions, throughput

    preset = PRESETS["gpt2"]
    model = dataclasses.replace(
        preset.model, dropout=DropoutConfig.uniform(rate), dtype="bfloat16", scan_layers=True
    )
    config = dataclasses.replace(preset, batch_size=batch_size, model=model)
    vocabulary = 50_304
    training = build_train_functions(config, vocabulary)
    rows = (
        np.random.default_rng(0)
        .integers(0, vocabulary, (batch_size, model.block_size + 1))
        .astype(np.int32)
    )
    batch, state = Batch(rows[:, :-1], rows[:, 1:]), training.state
    compiled = training.train_step.lower(state, batch, KEY).compile()
    memory = compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes if memory else 0
    times, loss = [], float("nan")
    for _ in range(steps):
        start_time = time.perf_counter()
        state, metrics = compiled(state, batch, KEY)
        loss = float(metrics["train_loss"])
        times.append(time.perf_counter() - start_time)
    tokens = batch_size * model.block_size / np.median(times[2:])
    parameters = sum(x.size for x in jax.tree.leaves(state) if x.ndim > 1) // 3
    mfu = throughput.share_of_peak(
        tokens * throughput.flops_per_token(model, parameters), jax.devices()[0].device_kind, 1
    )
    return {
        "what": f"gpt2, batch {batch_size}, scan, {attention}, dropout {rate}",
        "figure": round(tokens),
        "unit": "tokens/s",
        "mfu": mfu and round(mfu, 3),
        "peak_gib": round(peak / 2**30, 2),
        "loss": round(loss, 3),
    }


def run_benches():
    """The scripts of `make bench` that compare libraries; they write their own results."""
    for name in ("dropout", "catalogue", "attention", "encoder", "train_step", "generate"):
        script = RESULTS.parent / f"bench_{name}.py"
        code = subprocess.run([sys.executable, script], check=False).returncode
        yield {"what": script.stem, "figure": code, "unit": "exit code"}


CHECKS = {
    "masks": check_masks,
    "dropped": check_dropped_weights,
    "errors": check_errors,
    "dropout": measure_dropout,
    "attention": measure_attention,
    "training": measure_training,
    "bench": run_benches,
}


def main(kind="gpu"):
    """Run the checks and write their rows after each."""
    parser = argparse.ArgumentParser(description=f"Check dropout_jax and minigpt on a {kind}.")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    device = jax.devices()[0]
    out = settings.out or RESULTS / f"{kind}-{device.device_kind.lower().replace(' ', '-')}.json"
    torch = import_torch()
    result = {
        "device": device.device_kind,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "torch": torch and torch.__version__,
        },
        "seconds": {},
        "rows": [],
    }
    for name in settings.only:
        start_time = time.perf_counter()
        command = f"python examples/check_{kind}.py --only {name}"
        for row in CHECKS[name]():
            result["rows"].append({"check": name, "command": command} | row)
            print(json.dumps({"check": name} | row), flush=True)
            out.write_text(json.dumps(result, indent=1) + "\n")
        result["seconds"][name] = round(time.perf_counter() - start_time, 1)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {out}: {result['seconds']}")


if __name__ == "__main__":
    main()
