"""`minigpt.train`: the command, from Python."""

import dataclasses
import shutil
import subprocess
import sys

import pytest
from run_helpers import stop_after_step
from tiny import CONFIG, TEXT, outcome

import minigpt
from minigpt.run import metrics


def test_importing_it_imports_no_jax():
    code = "import sys, minigpt; print('jax' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.slow
def test_a_stopped_call_is_resumed_by_the_same_call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    config = dataclasses.replace(CONFIG, data="text.txt", mesh="data=1")  # pyright: ignore[reportArgumentType]
    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsLog, "add", stop_after_step(2, metrics.MetricsLog.add))
        stopped = minigpt.train(config)
    assert "stopped at step 2" in capsys.readouterr().out
    assert (str(stopped.run_dir), stopped.is_finished) == ("runs/minigpt", False)
    finished = minigpt.train(config, quiet=True)
    assert capsys.readouterr().out == ""
    assert (str(finished.run_dir), finished.is_finished) == ("runs/minigpt", True)
    assert [record["step"] for record in finished.records] == [2, 4]
    whole = minigpt.train(dataclasses.replace(config, run_dir="out"), quiet=True)  # pyright: ignore[reportArgumentType]
    stopped.run_dir.rename(tmp_path / "runs/out")
    assert outcome(tmp_path) == outcome(tmp_path / "runs")
    assert whole.is_finished
    with pytest.raises(ValueError, match="resume='always' is not allowed"):
        minigpt.train(config, resume="always")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_says_that_it_starts_again(
    tmp_path, capsys
):
    (tmp_path / "text.txt").write_text(TEXT)
    config = dataclasses.replace(CONFIG, data=tmp_path / "text.txt", run_dir=tmp_path / "out")  # pyright: ignore[reportArgumentType]
    minigpt.train(config)
    assert "starts again" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    minigpt.train(config)
    text = " ".join(capsys.readouterr().out.split())
    assert "starts again at step 1; checkpoints are written every 2 steps (--eval-every)" in text
