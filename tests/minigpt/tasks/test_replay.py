"""A step that is replayed is the step that was made, and shows where NaN began."""

import dataclasses
import functools
import io
import json
import math
import os
import re
import shutil
import time
from typing import Any

import jax
import numpy as np
import pytest
from marks import slow
from rich.console import Console
from run_helpers import read_files
from tiny import CONFIG, SITES, TEXT, with_dropout

from dropout_jax import fold
from minigpt.checkpoint import manager as checkpoint
from minigpt.checkpoint.manifest import ARRAYS
from minigpt.cli.main import main
from minigpt.config import OptimConfig
from minigpt.data.batches import window_offsets
from minigpt.data.dataset import load_dataset
from minigpt.model.dropout_sites import draw_masks
from minigpt.run import metrics
from minigpt.tasks.replay import replay
from minigpt.training import trainer

DROPPING = dataclasses.replace(
    CONFIG,
    steps=8,
    log_every=2,
    eval_every=3,
    model=dataclasses.replace(with_dropout(**dict.fromkeys(SITES, 0.3)), n_layer=1),
)
GROWING = dataclasses.replace(
    DROPPING,
    steps=30,
    log_every=8,
    eval_every=4,
    optim=OptimConfig(learning_rate=1e2, weight_decay=1.0, grad_clip=1e30, warmup_steps=0),
)


def run(config, folder):
    (folder / "text.txt").write_text(TEXT)
    config = dataclasses.replace(config, data=folder / "text.txt", run_dir=folder / "run")
    trainer.train(config, folder / "run", Console(file=io.StringIO()))
    return folder / "run"


@functools.cache
def replayed(run_dir, step):
    """What a replay gives; every one compiles its own programs."""

    def fail(message):
        raise AssertionError(message)

    return replay(run_dir, step, fail)


def command(*args):
    """Exit code of the command; 0 where it returns."""
    try:
        main([str(arg) for arg in args])
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with jax.numpy_dtype_promotion("standard"):
        return run(DROPPING, tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize(("step", "nearest"), [slow(3, 0), (8, 6)])
def test_the_measures_are_those_of_the_run_bit_for_bit(trained, step, nearest):
    result = replayed(trained, step)
    (record,) = [record for record in metrics.read_metrics(trained) if record["step"] == step]
    assert (result.step, result.restored_step) == (step, nearest)
    assert result.recorded == record["train_loss"]
    assert {name: record[name] for name in result.measured} == result.measured
    assert {"train_loss", "grad_norm", "param_norm"} <= set(result.measured)


@pytest.mark.slow
def test_the_batch_and_the_masks_are_those_of_the_step(trained):
    result, shape = replayed(trained, 5), (DROPPING.batch_size, DROPPING.model.block_size)
    text: Any = load_dataset(trained.parent / "text.txt", "char").train
    assert result.window_offsets == window_offsets(text, DROPPING.seed, 4, *shape).tolist()
    key = fold(jax.random.key(DROPPING.seed), "dropout", 4)
    assert key is not None
    masks = draw_masks(DROPPING.model, key, *shape)
    assert list(result.sites) == list(masks)
    for name, numbers in result.sites.items():
        assert numbers.rate == 0.3
        assert numbers.dropped == pytest.approx(1 - np.mean(np.asarray(masks[name])), abs=1e-6), (
            name
        )
        assert numbers.not_finite == 0
        assert numbers.input_largest >= numbers.input_rms > abs(numbers.input_mean)


@pytest.mark.slow
def test_sites_that_do_not_drop_are_shown(tmp_path):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, n_layer=1))
    sites = replayed(run(config, tmp_path), 3).sites
    assert len(sites) == len(SITES) + 1  # two of drop_path
    for numbers in sites.values():
        assert numbers.rate == numbers.dropped == 0
        assert numbers.output_rms == numbers.input_rms > 0
    # Causal attention's weights sum to one in each of 32 rows.
    assert sites["block/0/attn_weights"].input_mean == pytest.approx(1 / 32, rel=1e-5)


def test_a_damaged_checkpoint_is_passed_over_aloud(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "checkpoints" / "00000006" / ARRAYS).write_bytes(b"")
    messages = []
    result = replay(copy, 8, messages.append)
    assert result == replayed(trained, 8)._replace(restored_step=3)
    assert "skipping the checkpoint of step 6" in messages[0]


def test_what_is_printed_and_nothing_is_written(trained, capsys):
    before = read_files(trained)
    assert command("replay", trained, "--step", 8) == 0
    printed = capsys.readouterr().out
    loss = metrics.read_metrics(trained)[-1]["train_loss"]
    for part in ("checkpoint of step 6", f"{loss!r} (metrics.jsonl has the same)", "drop_path/mlp"):
        assert part in printed
    assert "<- first" not in printed
    assert read_files(trained) == before


def test_json(trained, capsys):
    assert command("replay", trained, "--step", 5, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["measured"]["train_loss"] > 0
    assert result["recorded"] is None  # every second step is
    assert result["sites"]["embed"]["rate"] == 0.3


@pytest.mark.parametrize("step", [0, -1, 9])
def test_a_step_outside_is_refused_in_one_line(trained, capsys, step):
    assert command("replay", trained, "--step", step) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == f"minigpt: step={step} is not allowed: the run in '{trained}' has the steps 1 to 8."
    )


def test_another_text_is_refused(trained, tmp_path, capsys):
    copy = shutil.copytree(trained, tmp_path / "run")
    config = copy / "config.toml"
    (tmp_path / "other.txt").write_text(TEXT.swapcase())
    text, other = (
        str(folder / name)
        for folder, name in ((trained.parent, "text.txt"), (tmp_path, "other.txt"))
    )
    config.write_text(config.read_text().replace(text, other))
    assert command("replay", copy, "--step", 5) == 2
    assert "the text that the run was trained on" in capsys.readouterr().err


@pytest.fixture(scope="module")
def exploded(tmp_path_factory):
    """A run whose weights grow a hundredfold a step, and the line it ended with."""
    folder, fsync = tmp_path_factory.mktemp("exploded"), os.fsync

    def slow(descriptor):  # the checkpoint of step 4 is not on disk yet when step 6 is made
        time.sleep(0.1)
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(os, "fsync", slow)
        with pytest.raises(ValueError, match="nan") as error:
            run(GROWING, folder)
    return folder / "run", str(error.value)


TEXTS = ("training", "validation")


def finite(result):
    return all(map(math.isfinite, result.measured.values()))


def test_nan_stops_a_run_with_its_step_checkpoint_and_batch(exploded):
    """The step is the first that is not finite, though losses are looked at every eight steps."""
    run_dir, line = exploded
    match = re.fullmatch(r"the loss of step (\d+) is nan; .* --step \1\.", line)
    assert match
    at = int(match[1])
    assert at % 4 != 0
    before, result = replayed(run_dir, at - 1), replayed(run_dir, at)
    assert finite(before)
    assert math.isnan(result.measured["train_loss"])
    assert f"Last good checkpoint: step {at - at % 4}." in line
    assert result.restored_step == at - at % 4
    assert f"as positions in the training text: {result.window_offsets}." in line
    assert line.endswith(f"Examine the step: minigpt replay {run_dir} --step {at}.")
    assert "\n" not in line


def test_no_checkpoint_and_no_record_is_of_nan(exploded):
    run_dir, _ = exploded
    assert checkpoint.list_steps(run_dir)
    for step in checkpoint.list_steps(run_dir):
        arrays, _ = checkpoint.read(run_dir, step)
        assert all(np.isfinite(array).all() for array in arrays.values())
    assert "NaN" not in (run_dir / "metrics.jsonl").read_text()


def test_the_command_ends_with_two_and_says_the_same_each_time(exploded, capsys):
    run_dir, line = exploded
    args = ("train", "--config", run_dir / "config.toml", "--run-dir", run_dir)
    assert command(*args) == 2
    assert capsys.readouterr().err.splitlines() == [f"minigpt: {line}"]


@pytest.mark.slow
def test_a_replay_marks_the_first_site_with_nan(exploded, capsys):
    run_dir, line = exploded
    at = int(line.split("--step ")[1].rstrip("."))
    assert command("replay", run_dir, "--step", at) == 0
    printed = capsys.readouterr().out
    bad = [name for name, numbers in replayed(run_dir, at).sites.items() if numbers.not_finite]
    assert 0 < len(bad) < len(replayed(run_dir, at).sites)
    assert printed.count("<- first") == 1
    assert f"{bad[0]} <- first" in printed
    assert command("replay", run_dir, "--step", at, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["measured"]["train_loss"] is None
    assert result["sites"][bad[0]]["not_finite"] > 0


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_not_saved_though_the_loss_is_one(tmp_path):
    """The update of step 1 overflows, and the loss of step 2 would be the first to tell."""
    config = dataclasses.replace(GROWING, steps=2, eval_every=1)
    config = dataclasses.replace(
        config, optim=OptimConfig(learning_rate=3e38, weight_decay=1e3, warmup_steps=0)
    )
    with pytest.raises(
        ValueError, match=r"norm of the new parameters of step 1 is (nan|inf); .*none"
    ):
        run(config, tmp_path)
    assert checkpoint.list_steps(tmp_path / "run") == []
    result = replayed(tmp_path / "run", 1)
    assert math.isfinite(result.measured["train_loss"])
    assert not finite(result)


@pytest.mark.parametrize("text", TEXTS)
def test_a_validation_that_is_no_number_stops_the_run(tmp_path, monkeypatch, text):
    estimates = iter([1.0, 1.0] + [math.nan if name == text else 1.0 for name in TEXTS])
    monkeypatch.setattr(trainer, "estimate_loss", lambda *_, **__: next(estimates))
    line = f"loss on the {text} text in the validation of step 4 is nan; .*: step 2\\."
    with pytest.raises(ValueError, match=line):
        run(CONFIG, tmp_path)
    assert checkpoint.list_steps(tmp_path / "run") == [2]
    assert [record["step"] for record in metrics.read_metrics(tmp_path / "run")] == [2]
