"""A run that begins with another's weights: exactly these, its own, and a run like any other."""

import dataclasses
import json
import pathlib
import random
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from run_helpers import (
    KILL_AND_RESTART,
    assert_one_line_error,
    child_environment,
    count_kills,
    flip_bit,
    largest_file,
    limit_file_size,
    read_files,
    run_command,
    stop_after_step,
)
from tiny import TEXT

from minigpt.checkpoint import manager as checkpoint
from minigpt.cli.commands import parse
from minigpt.cli.finetune import finetune_settings
from minigpt.cli.main import main
from minigpt.config import PRESETS
from minigpt.data.batches import make_batch
from minigpt.data.dataset import load_dataset
from minigpt.run import metrics
from minigpt.run.directory import RunSpec
from minigpt.run.parent import WEIGHT_FIELDS
from minigpt.training import finetune
from minigpt.training.train_step import build_train_functions

# Fewer characters than the parent's text has, so its own tokenizer would be another.
OTHER = "".join(random.Random(5).choices("To be or not ", k=1500))
PARENT = [
    *("train", "--data", "text.txt", "--run-dir", "parent", "--dropout", "0.25", "--steps", "12"),
    *("--batch-size", "3", "--log-every", "2", "--sample-tokens", "2", "--eval-every", "4"),
    *("--eval-batches", "2", "--keep-checkpoints", "2", "--optim.learning-rate", "0.05"),
    *("--model.n-layer", "1", "--model.n-embd", "8", "--model.block-size", "16"),
]
LAST = 12
COMMAND = [
    *("finetune", "parent", "--data", "other.txt", "--run-dir", "out", "--steps", str(LAST)),
    *("--eval-every", "4", "--patience", "9", "--model.dropout.mlp-hidden", "0.25"),
]
TIMED = ("tokens_per_s", "elapsed_s")
ARRAYS = "arrays.safetensors"


def write_texts(folder):
    (folder / "text.txt").write_text(TEXT)
    (folder / "other.txt").write_text(OTHER)


def outcome(run_dir):
    """Everything that a run leaves, but for times."""
    arrays, _ = checkpoint.read(run_dir, LAST)
    arrays = {name: (array.tobytes(), array.shape) for name, array in arrays.items()}
    records = [
        {name: value for name, value in record.items() if name not in TIMED}
        for record in metrics.read_metrics(run_dir)
    ]
    names = {path.name for path in run_dir.iterdir()}
    copy = {path.name: path.read_bytes() for path in (run_dir / "parent").rglob("*.*")}
    return arrays, records, names, copy, checkpoint.list_steps(run_dir)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A folder with a parent and its child."""
    folder = tmp_path_factory.mktemp("made")
    write_texts(folder)
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(PARENT)
        main(COMMAND)
    return folder


@pytest.fixture(autouse=True)
def folder(family, tmp_path, monkeypatch):
    """A folder with a copy of the parent."""
    write_texts(tmp_path)
    shutil.copytree(family / "parent", tmp_path / "parent")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def whole(family):
    """What the undisturbed child left; its parent is a folder of the same name elsewhere."""
    return outcome(family / "out")


def by_definition(parent, steps, step=None):
    """The weights after some steps from a parent's, with a fresh optimizer, written out."""
    child = RunSpec.load(parent.parent / "out")
    config, size = child.config, (child.config.batch_size, child.config.model.block_size)
    tokens = load_dataset(config.data, "char", RunSpec.load(parent).tokenizer)
    training = build_train_functions(config, RunSpec.load(parent).vocab_size)
    weights = checkpoint.restore(parent, training.state, step)[0].params
    state = training.put_state(jax.device_get(training.state)._replace(params=weights))
    for n in range(steps):
        rows: Any = make_batch(tokens.train, config.seed, n, *size)
        state, _ = training.train_step(state, training.put_batch(rows), jax.random.key(config.seed))
    return checkpoint.host_arrays(state)


def assert_equal(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], name)


@pytest.mark.slow
def test_the_steps_are_those_from_the_parents_weights_and_a_fresh_optimizer(family):
    arrays, _ = checkpoint.read(family / "out", LAST)
    assert_equal(arrays, by_definition(family / "parent", LAST))


@pytest.mark.slow
def test_the_best_of_the_parent(family, folder, capsys):
    """Its last has other weights here, and a higher loss."""
    parent = folder / "parent"
    arrays, meta = checkpoint.read(parent, 12)
    with checkpoint.CheckpointWriter(parent) as writer:
        changed = {name: array * 2 for name, array in arrays.items() if name != "step"}
        writer.save(13, changed | {"step": arrays["step"] + 1}, meta | {"val_loss": 99.0})
    best = checkpoint.best_step(parent)
    assert best is not None
    assert best < 13
    for which, step in (("best", best), ("last", 13)):
        shutil.rmtree(folder / "out", ignore_errors=True)
        code, _, err = run_command(capsys, *COMMAND, "--parent-checkpoint", which)
        assert (code, err) == (0, "")
        assert checkpoint.list_steps(folder / "out" / "parent") == [step]
        assert_equal(checkpoint.read(folder / "out", LAST)[0], by_definition(parent, LAST, step))


@pytest.mark.slow
def test_a_child_is_a_run_like_any_other(family, folder, capsys):
    """It needs nothing of the parent's folder, and reads its text with the parent's tokenizer."""
    (folder / "parent").rename(folder / "elsewhere")
    shutil.copytree(family / "out", folder / "out")
    code, printed, err = run_command(capsys, "sample", "out", "--prompt", "Whether", "--tokens", 5)
    assert code == 0, err
    assert printed.startswith("Whether")
    tokens = len(OTHER) - int(0.9 * len(OTHER)) - 1
    result = json.loads(run_command(capsys, "eval", "out", "--json", "--checkpoint", "best")[1])
    assert result["tokens"] == tokens
    for step, restored_step in ((2, 0), (LAST, 8)):
        result = json.loads(run_command(capsys, "replay", "out", "--step", step, "--json")[1])
        assert result["restored_step"] == restored_step
        (record,) = [each for each in metrics.read_metrics(folder / "out") if each["step"] == step]
        assert result["measured"]["train_loss"] == result["recorded"] == record["train_loss"]


def test_the_copy_is_a_run_too(family, capsys):
    parent, copy = family / "parent", family / "out" / "parent"
    assert RunSpec.load(copy) == RunSpec.load(parent)
    assert checkpoint.read(copy, 12)[1] == checkpoint.read(parent, 12)[1]
    assert_equal(checkpoint.read(copy, 12)[0], checkpoint.read(parent, 12)[0])
    assert run_command(capsys, "eval", copy)[1] == run_command(capsys, "eval", parent)[1]


@pytest.mark.slow
def test_a_child_has_children(family, folder, capsys):
    shutil.copytree(family / "out", folder / "out")
    code, _, err = run_command(
        capsys, "finetune", "out", "--data", "text.txt", "--run-dir", "grandchild"
    )
    assert (code, err) == (0, "")
    run_of = RunSpec.load(folder / "grandchild")
    assert run_of.tokenizer == RunSpec.load(folder / "parent").tokenizer
    assert run_of.config.steps == 3
    assert run_command(capsys, "replay", "grandchild", "--step", 1)[0] == 0


# Settings.


def test_the_defaults_follow_from_the_parent_and_the_steps():
    parent = PRESETS["shakespeare-char"]
    defaults = finetune.finetune_defaults(parent, pathlib.Path("P"))
    assert (defaults.model, defaults.seed, defaults.batch_size) == (parent.model, 1337, 64)
    assert (defaults.steps, defaults.eval_every, defaults.patience) == (1250, 125, 3)
    assert (defaults.optim.learning_rate, defaults.optim.final_learning_rate) == (1e-4, 1e-5)
    assert defaults.optim.warmup_steps == 100
    few = finetune.finetune_defaults(
        dataclasses.replace(parent, mesh="data=2"), pathlib.Path("P"), 30
    )
    assert (few.steps, few.eval_every, few.optim.warmup_steps, few.mesh) == (30, 3, 3, None)


def test_later_settings_win(folder):
    (folder / "some.toml").write_text("steps = 7\nparent = 'no'\n[optim]\nwarmup_steps = 2\n")
    words = ["parent", "--data", "other.txt", "--config", "some.toml", "--dropout", "0.4"]
    words += ["--model.dropout.embed", "0.1", "--patience", "None"]
    settings = finetune_settings(parse(["finetune", *words]))
    assert settings.parent == folder / "parent"
    assert (settings.steps, settings.patience, settings.optim.warmup_steps) == (7, None, 2)
    assert settings.optim.learning_rate == pytest.approx(0.005)
    assert (settings.model.dropout.embed, settings.model.dropout.attn_out) == (0.1, 0.4)


@pytest.mark.slow
def test_config_toml_starts_the_same_run(family, folder, capsys):
    shutil.copytree(family / "out", folder / "out")
    code, _, err = run_command(capsys, "train", "--config", "out/config.toml", "--run-dir", "again")
    assert (code, err) == (0, "")
    assert outcome(folder / "again")[:2] == outcome(folder / "out")[:2]


@pytest.mark.slow
def test_without_a_run_dir_it_is_named_after_the_parent(folder, capsys):
    words = ["finetune", "parent", "--data", "other.txt", "--steps", 2]
    for more, name in ((), "parent-finetuned"), (("--seed", 4), "parent-finetuned-2"):
        code, printed, err = run_command(capsys, *words, *more)
        assert (code, err) == (0, "")
        assert f"run directory: runs/{name}\n" in printed
    assert RunSpec.load(folder / "runs" / "parent-finetuned").config.parent == folder / "parent"


# Refusals leave nothing behind.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.n-layer", "2"], "model.n_layer=2 is not allowed: the parent, '"),
        (["--model.n-head", "2"], "Leave --model.n-head out"),
        (["--model.block-size", "8"], "minigpt train --model.block-size 8"),
        (["--model.norm", "post"], "model.norm='post'"),
        (["--model.bias", "True"], "model.bias=True"),
        (["--model.scan-layers", "True"], "model.scan_layers=True"),
        (["--model.vocab-size", "99"], "model.vocab_size=99"),
        (["--model.n-embd", "16"], "model.n_embd=16"),
        (["--tokenizer", "byte"], "tokenizer='byte'"),
        (
            ["--data", "strange.txt"],
            "text has 'Z' at position 1498, a character that the",
        ),
        (["--data", "missing.txt"], "No such file"),
        (["--data", "play:the-tempest"], "at position 0, a character that the tokenizer"),
        (["--data", "play:hamlett"], "data='play:hamlett' is not allowed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_fit_the_parent(folder, capsys, words, message):
    (folder / "strange.txt").write_text(OTHER[:1498] + "Z" + OTHER[1499:])
    before = read_files(folder)
    assert_one_line_error(run_command(capsys, *COMMAND, *words), message)
    assert read_files(folder) == before
    assert not (folder / "out").exists()


def test_every_field_of_the_model_is_of_the_shape_or_may_change():
    names = {field.name for field in dataclasses.fields(PRESETS["gpt2"].model)}
    assert names == {*WEIGHT_FIELDS, "dtype", "remat", "dropout", "lora"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune"], "minigpt finetune RUN_DIR"),
        (["finetune", "--data", "other.txt"], "minigpt finetune RUN_DIR"),
        (["finetune", "parent"], "data=None is not allowed"),
        (["finetune", "nowhere", "--data", "other.txt"], "not a run directory"),
        (["finetune", "parent", "--data", "other.txt", "--parent", "b"], "parent='b' is not"),
        (["train", "--parent", "nowhere"], "not a run directory"),
        (["train", "--parent", "parent"], "model.n_layer=4 is not allowed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_and_exit_code_two(folder, capsys, words, message):
    assert_one_line_error(run_command(capsys, *words), message)
    assert not (folder / "runs").exists()


def test_a_parent_without_a_checkpoint(folder, capsys):
    shutil.rmtree(folder / "parent" / "checkpoints")
    assert_one_line_error(run_command(capsys, *COMMAND), "it has no checkpoint yet")
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_a_damaged_parent(folder, capsys):
    """The newest valid checkpoint is taken, and it is said; there must be one."""
    flip_bit(folder / "parent" / "checkpoints" / "00000012" / ARRAYS)
    code, printed, _ = run_command(capsys, *COMMAND)
    assert code == 0
    assert "step 8 is the newest valid checkpoint" in " ".join(printed.split())
    assert checkpoint.list_steps(folder / "out" / "parent") == [8]
    for step in checkpoint.list_steps(folder / "parent")[:-1]:
        flip_bit(folder / "parent" / "checkpoints" / f"{step:08d}" / ARRAYS)
    words = [*COMMAND, "--run-dir", "none"]
    assert_one_line_error(run_command(capsys, *words), "none of its checkpoints can be restored")
    assert not (folder / "none").exists()


def test_a_run_goes_on_with_its_own_parent_only(family, folder, capsys):
    run_dir = shutil.copytree(family / "out", folder / "out")
    before = read_files(run_dir)
    assert_one_line_error(
        run_command(capsys, *COMMAND), "parent=", "was started with", str(family / "parent")
    )
    words = ["finetune", family / "parent", *COMMAND[2:]]
    assert_one_line_error(
        run_command(capsys, *words, "--parent-checkpoint", "best"), "parent_checkpoint='best'"
    )
    assert_one_line_error(
        run_command(capsys, "train", *COMMAND[2:]), "is not allowed", "was started with"
    )
    assert_one_line_error(
        run_command(capsys, *COMMAND[:5], "parent"), "is not allowed", "was started with"
    )
    assert read_files(run_dir) == before
    assert run_command(capsys, *words)[0] == 0


# It goes on exactly.


def stopped_at(step, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsLog, "add", stop_after_step(step, metrics.MetricsLog.add))
        assert run_command(capsys, *COMMAND)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gone", "changed"])
def test_a_begun_run_needs_no_parent(folder, capsys, whole, monkeypatch, what):
    stopped_at(2, monkeypatch, capsys)
    shutil.rmtree(folder / "out" / "checkpoints")  # so that it begins again at the parent's weights
    shutil.rmtree(folder / "parent")
    if what == "changed":
        assert run_command(capsys, *PARENT, "--seed", 2, "--model.n-layer", 2)[0] == 0
    code, _, err = run_command(capsys, *COMMAND)
    assert (code, err) == (0, "")
    assert outcome(folder / "out")[:3] == whole[:3]


@pytest.mark.slow
def test_no_room_for_the_copy(family, folder, capsys, whole):
    with limit_file_size(largest_file(family / "parent", ARRAYS) - 1):
        assert_one_line_error(
            run_command(capsys, *COMMAND), "File too large", "out/parent/checkpoints"
        )
    assert not list(folder.rglob("*.partial"))
    assert_one_line_error(run_command(capsys, "sample", "out"), "has no checkpoint")
    assert run_command(capsys, *COMMAND)[0] == 0
    assert outcome(folder / "out") == whole


def disturbed(folder, plans, cache):
    """Run the command through what disturbs it; how each process ended."""
    words = [sys.executable, "-W", "error", str(KILL_AND_RESTART), json.dumps(plans), *COMMAND]
    done = subprocess.run(
        words, cwd=folder, env=child_environment(cache), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


KILL = ["SIGKILL"]
# The first processes are killed while they begin the run and copy the parent into it.
BEGINNING = [
    *(["replace", 2], ["replace after", 2], ["copy", 1], ["rename", 1], ["rename after", 1]),
    *(["replace", 2], ["replace after", 2], ["replace", 3]),
]
LATER = [["batch", 2], ["rename", 1], ["evaluation", 3], ["record after", 2], ["copy after", 2]]
FEW = [["replace", 2], ["rename after", 1], ["batch", 2], ["copy after", 2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "plans", [FEW, pytest.param([*BEGINNING, *LATER], marks=pytest.mark.torture)], ids=len
)
def test_kills_change_nothing(folder, tmp_path_factory, plans):
    cache = tmp_path_factory.mktemp("compiled")
    undisturbed = shutil.copytree(folder, tmp_path_factory.mktemp("undisturbed") / "x")
    disturbed(undisturbed, [], cache)
    ends = disturbed(folder, [[*plan, KILL] for plan in plans], cache)
    assert count_kills(ends) == len(plans)
    assert outcome(folder / "out") == outcome(undisturbed / "out")


@pytest.mark.slow
def test_sigterm_is_the_run_that_goes_on(folder, capsys, whole, monkeypatch):
    stopped_at(6, monkeypatch, capsys)
    assert checkpoint.list_steps(folder / "out") == [4, 6]
    code, printed, _ = run_command(capsys, *COMMAND)
    assert code == 0
    assert "resuming from step 6 in out, initial weights from" in " ".join(printed.split())
    assert outcome(folder / "out")[:4] == whole[:4]
