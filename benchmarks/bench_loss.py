"""The loss and the step's time of the default preset, for minigpt and for PyTorch.

    python benchmarks/bench_loss.py --data FILE [--seeds 1337 1 2]

trains minigpt and nanoGPT's architecture in PyTorch (benchmarks/torch_gpt.py) on the same split,
one after the other on the same machine, and writes benchmarks/results/loss.json.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from minigpt.config import PRESETS

HERE = Path(__file__).parent


def run(*command) -> str:
    return subprocess.run(
        [sys.executable, *map(str, command)], check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def measure_minigpt(data, seed) -> dict:
    config = PRESETS["shakespeare-char-cpu"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        options = ("--data", data, "--seed", seed, "--run-dir", out, "--sample-tokens", 0)
        run("-m", "minigpt", "train", *options)
        whole = json.loads(run("-m", "minigpt", "eval", out, "--json"))["loss"]
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    tokens = config.batch_size * config.model.block_size
    times = [1e3 * tokens / record["tokens_per_s"] for record in records[1:]]
    return {
        "framework": "minigpt",
        "seed": seed,
        "val_loss_whole_text": round(whole, 4),
        "val_loss_20_batches": round(records[-1]["val_loss"], 4),
        "step_ms_quartiles": [round(value, 1) for value in statistics.quantiles(times, n=4)],
    }


def measure_torch(data, seed) -> dict:
    result = json.loads(run(HERE / "torch_gpt.py", "--data", data, "--seed", seed))
    return {
        "framework": f"torch {result['torch']}",
        "seed": seed,
        "val_loss_whole_text": result["val_loss"],
        "step_ms_quartiles": result["step_ms_quartiles"],
    }


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 1, 2])
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        for measure in (measure_minigpt, measure_torch):
            rows.append(measure(args.data, seed))
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "rows": rows,
    }
    (HERE / "results" / "loss.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
