"""A run that is killed at any instant, or asked to stop, goes on and ends as if it never was."""

import json
import os
import pathlib
import random
import subprocess
import sys

import pytest
from tiny import TEXT

from minigpt import checkpoint, metrics

HERE = pathlib.Path(__file__).parent
TIMED = ("tokens_per_s", "elapsed_s")
COMMAND = [
    *("train", "--data", "text.txt", "--run-dir", "out", "--dropout", "0.2"),
    *("--model.dropout.mlp-hidden", "0.2", "--model.dropout.drop-path", "0.2"),
    *("--steps", "24", "--batch-size", "3", "--log-every", "2", "--sample-tokens", "2"),
    *("--eval-every", "4", "--eval-batches", "2", "--keep-checkpoints", "2"),
    *("--model.n-layer", "1", "--model.n-embd", "8", "--model.block-size", "16"),
]


def environment():
    """One device, and compiled programs kept between the processes of a test."""
    return os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


def killing(folder, plans):
    """Run the command through its kills; what is said of them."""
    (folder / "text.txt").write_text(TEXT)
    words = [sys.executable, "-W", "error", str(HERE / "killing.py"), json.dumps(plans), *COMMAND]
    done = subprocess.run(
        words, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def outcome(folder):
    """Everything that a run leaves, but for times."""
    run_dir = folder / "out"
    arrays, _ = checkpoint.read(run_dir, 24)
    arrays = {name: (array.tobytes(), array.shape) for name, array in arrays.items()}
    records = [
        {name: value for name, value in record.items() if name not in TIMED}
        for record in metrics.read(run_dir)
    ]
    names = {path.name for path in run_dir.iterdir()}
    return arrays, records, checkpoint.steps(run_dir), names


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    killing(folder, [])
    return outcome(folder)


def test_the_undisturbed_run_is_whole(undisturbed):
    arrays, records, steps, names = undisturbed
    assert any(name.startswith("opt_state") for name in arrays)
    assert [record["step"] for record in records] == list(range(2, 25, 2))
    assert [r["step"] for r in records if "val_loss" in r] == list(range(4, 25, 4))
    assert steps[-2:] == [20, 24]
    assert names == {
        *(".lock", "checkpoints", "config.toml", "loss.png", "metrics.jsonl", "tokenizer.json"),
    }


AIMED = [
    *(["fsync", 2], ["rename", 1], ["rename after", 1], ["prune", 1], ["copy after", 1]),
    *(["evaluation", 3], ["record after", 1], ["replace after", 1]),
]


def test_twelve_kills_change_nothing(undisturbed, tmp_path):
    chance = random.Random(7)
    plans = [*AIMED, *(["time", chance.uniform(0, 1.5)] for _ in range(4))]
    chance.shuffle(plans)
    said = killing(tmp_path, plans)
    assert outcome(tmp_path) == undisturbed
    assert said["killed"] >= 8, said  # the last ones may come after the end


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(20))
def test_two_hundred_kills_change_nothing(undisturbed, tmp_path, seed):
    chance = random.Random(seed)
    names = ["fsync", "rename", "replace", "prune", "copy", "evaluation", "record", "plot"]
    plans = []
    for _ in range(10):
        aimed = [chance.choice(names) + chance.choice(["", " after"]), chance.randint(1, 6)]
        plans.append(chance.choice([aimed, ["time", chance.uniform(0, 2)]]))
    said = killing(tmp_path, plans)
    assert outcome(tmp_path) == undisturbed
    print(said)
