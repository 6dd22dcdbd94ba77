"""Weights & Biases gets every record, in one run of its own, and never stops the training."""

import dataclasses
import io
import sys

import pytest
from fake_wandb import FakeWandb
from rich.console import Console
from run_helpers import stop_after_step
from tiny import CONFIG, TEXT, outcome

from minigpt.run import metrics
from minigpt.training import trainer


@pytest.fixture
def config(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return dataclasses.replace(CONFIG, data=tmp_path / "text.txt", mesh="data=1", wandb=True)


def train(config, folder):
    console = Console(file=io.StringIO(), width=500)
    trainer.train(config, folder / "out", console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_it_has_the_records_and_a_resumed_run_goes_on_there(config, tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with monkeypatch.context() as patch:
        added = stop_after_step(2, metrics.MetricsLog.add)
        patch.setattr(metrics.MetricsLog, "add", added)
        train(config, tmp_path)
    train(config, tmp_path)
    ((run_id, history),) = wandb.runs.items()
    records = metrics.read_metrics(tmp_path / "out")
    assert history == {
        record["step"]: {name: value for name, value in record.items() if name != "step"}
        for record in records
    }
    assert all("learning_rate" in record for record in records)
    assert wandb.finished == len(wandb.starts) == 2
    for options in wandb.starts:
        assert (options["project"], options["id"], options["resume"]) == (
            "minigpt",
            run_id,
            "allow",
        )
        assert options["config"]["model"]["n_layer"] == 2
        assert options["dir"] == str(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("fail", ["init", "log", "finish"])
def test_what_fails_there_is_a_warning(config, tmp_path, monkeypatch, fail):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(fail))
    printed = train(config, tmp_path)
    assert printed.count(f"wandb has failed: no network in {fail}.") == 1
    assert outcome(tmp_path)[2] == [2, 4]


def test_without_the_package_it_is_refused_before_anything_is_done(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"wandb=True is not allowed: .*\[wandb\]"):
        train(config, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_it_changes_no_bit(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    train(config, tmp_path)
    with_wandb = outcome(tmp_path)
    (tmp_path / "out").rename(tmp_path / "with")
    train(dataclasses.replace(config, wandb=False), tmp_path)
    without = outcome(tmp_path)
    assert with_wandb[:3] == without[:3]
    assert with_wandb[3] == without[3] | {"wandb_id"}
