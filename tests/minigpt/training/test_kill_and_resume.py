"""A run that is killed at any instant, or asked to stop, goes on and ends as if it never was."""

import gzip
import json
import pathlib
import random
import subprocess
import sys

import pytest
from chat_models import write_examples
from marks import slow
from run_helpers import KILL_AND_RESTART, child_environment, count_kills
from tiny import TEXT, outcome

HERE = pathlib.Path(__file__).parent
COMMAND = [
    *("train", "--data", "text.txt", "--run-dir", "out", "--dropout", "0.25"),
    *("--model.dropout.mlp-hidden", "0.25", "--model.dropout.drop-path", "0.25"),
    *("--steps", "60", "--batch-size", "3", "--log-every", "2", "--sample-tokens", "2"),
    *("--eval-every", "4", "--eval-batches", "2", "--keep-checkpoints", "2"),
    *("--model.n-layer", "1", "--model.n-embd", "8", "--model.block-size", "16"),
]


def killing(folder, plans, cache, more=()):
    """Run the command through what disturbs it; how each process ended."""
    (folder / "text.txt").write_text(TEXT)
    words = [
        sys.executable,
        "-W",
        "error",
        str(KILL_AND_RESTART),
        json.dumps(plans),
        *COMMAND,
        *more,
    ]
    done = subprocess.run(
        words, cwd=folder, env=child_environment(cache), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("undisturbed")
    killing(folder, [], cache)
    return outcome(folder)


@pytest.mark.slow
def test_the_undisturbed_run_is_whole(undisturbed):
    arrays, records, steps, names = undisturbed
    assert any(name.startswith("opt_state") for name in arrays)
    assert [record["step"] for record in records] == list(range(2, 61, 2))
    assert [r["step"] for r in records if "val_loss" in r] == list(range(4, 61, 4))
    assert steps[-2:] == [56, 60]
    assert names == {
        *(".lock", "checkpoints", "config.toml", "loss.png", "metrics.jsonl", "tokenizer.json"),
    }


KILL = ["SIGKILL"]
AIMED = [
    *(["fsync", 5], ["rename", 1], ["rename after", 1], ["prune", 1], ["copy after", 1]),
    *(["evaluation", 3], ["record after", 1], ["replace after", 1]),
]


@pytest.mark.slow
def test_twelve_kills_change_nothing(undisturbed, tmp_path, cache):
    chance = random.Random(7)
    plans = [[*plan, KILL] for plan in AIMED]
    plans += [["time", chance.uniform(0, 0.4), KILL] for _ in range(4)]  # some six steps
    chance.shuffle(plans)
    assert count_kills(killing(tmp_path, plans, cache)) == 12
    assert outcome(tmp_path) == undisturbed


SEVERAL = ("--data", "folder", "lines.jsonl", "text.txt", "--val-data", "text.txt.gz")


def write_several(folder):
    (folder / "folder").mkdir()
    (folder / "folder" / "part.txt").write_text(TEXT.upper())
    (folder / "lines.jsonl").write_text(json.dumps({"text": TEXT.swapcase()}) + "\n")
    (folder / "text.txt.gz").write_bytes(gzip.compress(TEXT.encode()))


@pytest.mark.torture
def test_kills_change_nothing_with_several_texts(tmp_path_factory, tmp_path, cache):
    folder = tmp_path_factory.mktemp("undisturbed_several")
    for path in (folder, tmp_path):
        write_several(path)
    killing(folder, [], cache, SEVERAL)
    plans = [[*plan, KILL] for plan in AIMED[1:4]] + [["time", 0.2, KILL]]
    assert count_kills(killing(tmp_path, plans, cache, SEVERAL)) == 4
    assert outcome(tmp_path) == outcome(folder)


CONVERSATIONS = ("--data", "x.jsonl", "--tokenizer", "byte", "--model.block-size", "64")


@pytest.mark.torture
def test_kills_change_nothing_with_conversations(tmp_path_factory, tmp_path, cache):
    folder = tmp_path_factory.mktemp("undisturbed_conversations")
    for path in (folder, tmp_path):
        write_examples(path / "x.jsonl")
    killing(folder, [], cache, CONVERSATIONS)
    plans = [[*plan, KILL] for plan in AIMED[1:5]] + [["time", 0.2, KILL], ["time", 0.3, KILL]]
    assert count_kills(killing(tmp_path, plans, cache, CONVERSATIONS)) == 6
    assert outcome(tmp_path) == outcome(folder)


LONG = ("--steps", "3000", "--eval-every", "50", "--log-every", "10")


@pytest.fixture(scope="module")
def undisturbed_long(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("undisturbed_long")
    killing(folder, [], cache, LONG)
    return outcome(folder)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(20))
def test_two_hundred_kills_change_nothing(undisturbed_long, tmp_path, cache, seed):
    """Ten each, all early enough that the run is not at its end before."""
    chance = random.Random(seed)
    names = ["fsync", "rename", "replace", "prune", "copy", "evaluation", "record"]
    plans = []
    for _ in range(10):
        name = chance.choice(names)
        call = 1 if name == "replace" else chance.randint(1, 4)  # once, as a process begins
        aimed = [name + chance.choice(["", " after"]), call, KILL]
        plans.append(chance.choice([aimed, ["time", chance.uniform(0, 0.5), KILL]]))
    ends = killing(tmp_path, plans, cache, LONG)
    assert outcome(tmp_path) == undisturbed_long
    assert count_kills(ends) == 10


STOPS = [
    ["batch", 1, ["SIGTERM"]],  # before the first step
    ["batch", 3, ["SIGINT"]],
    ["batch after", 2, ["SIGTERM"]],
    ["evaluation", 2, ["SIGTERM"]],
    ["evaluation after", 1, ["SIGINT"]],
    ["copy", 1, ["SIGINT"]],
    ["record", 2, ["SIGTERM"]],
    ["sampling", 1, ["SIGINT"]],
]


@pytest.mark.slow
def test_a_stop_leaves_an_exact_checkpoint_and_exit_code_zero(undisturbed, tmp_path, cache):
    """Within five seconds of the step's end, whatever the run was doing."""
    ends = killing(tmp_path, STOPS, cache)
    assert [code for code, _ in ends] == [0] * 9
    assert all(seconds < 5 for _, seconds in ends[1:-1]), ends  # the first step is compiled
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_second_signal_leaves_at_once_and_harms_nothing(undisturbed, tmp_path, cache):
    plans = [["batch", 6, ["SIGINT", "SIGINT"]], ["copy", 2, ["SIGTERM", "SIGINT"]]]
    ends = killing(tmp_path, plans, cache)
    assert [code for code, _ in ends] == [-2, -2, 0]
    assert outcome(tmp_path) == undisturbed


SCHEDULED = (
    *("--dropout-schedule", "curriculum", "--model.dropout.over-depth", "linear"),
    *("--model.n-layer", "2", "--model.scan-layers", "True", "--sample-every", "8"),
)


@pytest.mark.slow
def test_kills_change_nothing_of_scheduled_rates(tmp_path, cache):
    undisturbed, killed = (tmp_path / name for name in ("undisturbed", "killed"))
    for folder in (undisturbed, killed):
        folder.mkdir()
    killing(undisturbed, [], cache, SCHEDULED)
    plans = [[*plan, KILL] for plan in [*AIMED, ["sampling", 2], ["plot after", 1]]]
    assert count_kills(killing(killed, plans, cache, SCHEDULED)) == 10
    assert outcome(killed) == outcome(undisturbed)
    rates = [record["dropout/embed"] for record in outcome(killed)[1]]
    assert rates == sorted(set(rates))


EXTENDED = ("--dropout-schedule", "late", "--steps", "90", "--extend")


@pytest.mark.parametrize(  # the last step is a multiple of --eval-every, or not
    "steps",
    [pytest.param("20", marks=pytest.mark.torture), slow("22")],
)
def test_kills_change_nothing_of_an_extension(tmp_path, cache, steps):
    """Whatever the instant: before the extension is written, as it is written, and after."""
    undisturbed, killed = (tmp_path / name for name in ("undisturbed", "killed"))
    for folder in (undisturbed, killed):
        folder.mkdir()
        killing(folder, [], cache, ("--dropout-schedule", "late", "--steps", steps))
    killing(undisturbed, [], cache, EXTENDED)
    plans = [["replace", 1, KILL], ["replace after", 1, KILL]]
    plans += [[*plan, KILL] for plan in AIMED] + [["time", 0.2, KILL]]
    assert count_kills(killing(killed, plans, cache, EXTENDED)) == 11
    assert outcome(killed) == outcome(undisturbed)
    config = (killed / "out" / "config.toml").read_text()
    assert "".join(config.split()).count(f"extended_from=[[{steps},{steps},],]") == 1
