"""Texts of pipes: read once, kept by the run, and never waited for again."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from run_helpers import (
    KILL_AND_RESTART,
    assert_one_line_error,
    child_environment,
    count_kills,
    read_files,
    run_command,
    stop_after_step,
)
from tiny import TEXT, outcome

from minigpt.cli.main import main
from minigpt.config import Config
from minigpt.run import RunSpec, has_same_data, metrics, read_streams, streams

OPTIONS = [
    *("--steps", "6", "--batch-size", "3", "--log-every", "2", "--sample-tokens", "2"),
    *("--eval-every", "2", "--eval-batches", "2", "--dropout", "0.25"),
    *("--model.n-layer", "1", "--model.n-embd", "8", "--model.block-size", "16"),
]
RUN = ("train", "--data", "fifo", *OPTIONS)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    return tmp_path


@contextlib.contextmanager
def writing(text, name="fifo"):
    """Write a text to a FIFO, whose reader must come."""
    raw = text if isinstance(text, bytes) else text.encode()
    writer = threading.Thread(target=Path(name).write_bytes, args=(raw,))
    writer.start()
    yield
    writer.join(timeout=20)
    assert not writer.is_alive()


@pytest.fixture(scope="module")
def from_file(tmp_path_factory):
    """What the same command leaves with the text in a file."""
    folder = tmp_path_factory.mktemp("from_file")
    (folder / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        import jax

        patch.chdir(folder)
        with jax.numpy_dtype_promotion("standard"):
            main(["train", "--data", "text.txt", "--run-dir", "out", *OPTIONS])
    return outcome(folder)


def assert_same_run(folder, from_file):
    *values, names = outcome(folder)
    assert values == list(from_file[:-1])
    assert names == from_file[-1] | {"stream-1.txt"}


@pytest.mark.slow
def test_a_stream_is_read_once_and_kept(folder, from_file, capsys):
    with writing(TEXT):
        code, printed, _ = run_command(capsys, *RUN, "--run-dir", "out")
    assert code == 0
    assert "reading fifo to its end; the run directory keeps the text, stream-1.txt" in printed
    assert_same_run(folder, from_file)
    assert Path("out/stream-1.txt").read_text() == TEXT
    # Nobody writes to the FIFO any more.
    before = read_files(folder / "out")
    code, printed, _ = run_command(capsys, *RUN, "--run-dir", "out")
    assert code == 0
    assert "fifo is not read: the run keeps its text, out/stream-1.txt" in printed
    assert read_files(folder / "out") == before
    shutil.move("out", "moved")
    loss = json.loads(run_command(capsys, "eval", "moved", "--json")[1])
    assert loss["tokens"] == len(TEXT) - int(0.9 * len(TEXT)) - 1
    assert run_command(capsys, "replay", "moved", "--step", "1")[0] == 0
    code, _, error = run_command(
        capsys, "train", "--config", "moved/config.toml", "--run-dir", "moved"
    )
    assert (code, error) == (0, "")
    config = RunSpec.load("moved").config
    assert config.data == (folder / "moved" / "stream-1.txt",)


@pytest.mark.slow
def test_a_stopped_run_resumes_only_with_the_same_text(folder, capsys, monkeypatch):
    """Without --run-dir the text tells which run is meant."""
    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsLog, "add", stop_after_step(2, metrics.MetricsLog.add))
        with writing(TEXT):
            assert "stopped at step 2" in run_command(capsys, *RUN)[1]
        with writing(TEXT.swapcase()):
            assert "stopped at step 2" in run_command(capsys, *RUN)[1]
    runs = folder / "runs" / "shakespeare-char-cpu"
    assert {path.name for path in runs.parent.iterdir()} == {runs.name, runs.name + "-2"}
    with writing(TEXT):
        assert f"resuming from step 2 in runs/{runs.name}\n" in run_command(capsys, *RUN)[1]
    assert Path(runs, "stream-1.txt").read_text() == TEXT


@pytest.mark.slow
def test_a_run_of_a_file_may_go_on_with_a_stream_of_the_same_text(folder, from_file, capsys):
    Path("text.txt").write_text(TEXT)
    assert run_command(capsys, "train", "--data", "text.txt", "--run-dir", "out", *OPTIONS)[0] == 0
    with writing(TEXT[:-9]):
        refused = run_command(capsys, *RUN, "--run-dir", "out")
    assert_one_line_error(refused, "the text that the run was trained on")
    assert not Path("out/stream-1.txt").exists()
    with writing(TEXT):
        assert run_command(capsys, *RUN, "--run-dir", "out")[0] == 0
    assert_same_run(folder, from_file)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"caf\xe9 noir et du lait", "data='fifo' is not allowed: it must be UTF-8"),
        (TEXT.encode("utf-16"), "it is UTF-16"),
        ("", "a training text of 0 tokens"),
    ],
)
def test_a_stream_that_is_no_text_leaves_nothing(folder, capsys, text, part):
    with writing(text):
        assert_one_line_error(run_command(capsys, *RUN, "--run-dir", "out"), part)
    assert {path.name for path in folder.iterdir()} == {"fifo"}


def test_several_streams_are_kept_under_names_of_their_own(folder, capsys):
    os.mkfifo("other")
    config = Config(data=(Path("fifo"), Path("play:hamlet")), val_data=(Path("other"),))
    with writing("one\r"), writing("two", "other"), read_streams(config, None, print) as files:
        assert files.data is not None
        assert files.val_data is not None
        one, play, two = *files.data, *files.val_data
        assert (one.name, play, two.name) == ("stream-1.txt", Path("play:hamlet"), "stream-2.txt")
        assert (one.read_bytes(), two.read_bytes()) == (b"one\r", b"two")
        Path("out").mkdir()
        saved = streams.save_streams(files, folder / "out")
        assert has_same_data(saved, files)
        two.write_bytes(b"twO")
        assert not has_same_data(saved, files)
    assert saved.data == (folder / "out" / "stream-1.txt", play)
    assert not one.exists()
    shutil.move("out", "moved")
    config = streams.find_kept_streams(saved, Path("moved"))
    assert config.val_data == (folder / "moved" / "stream-2.txt",)


def test_a_run_that_cannot_be_created_leaves_no_copy(folder, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "out/config.toml")

    monkeypatch.setattr(RunSpec, "save_config", full)
    with writing(TEXT):
        assert_one_line_error(
            run_command(capsys, *RUN, "--run-dir", "out"), "No space left on device"
        )
    assert {path.name for path in folder.iterdir()} == {"fifo"}


def test_several_processes_cannot_share_a_stream(monkeypatch):
    monkeypatch.setattr(streams, "is_single_process", lambda: False)
    config = Config(data=(Path("fifo"),))
    with (
        pytest.raises(ValueError, match="data='fifo' is not allowed with several processes"),
        read_streams(config, None, print),
    ):
        pass


FEED = """
import sys, time
while True:
    with open("fifo", "w") as fifo:
        fifo.write(sys.argv[1])
    time.sleep(0.3)  # so that the reader sees the end
"""


def run_killed(folder, plans, command, cache):
    """Run a command through kills: how each process ended, and what they printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(KILL_AND_RESTART), json.dumps(plans), *command],
        cwd=folder,
        env=child_environment(cache),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_kills_before_and_after_the_copy_change_nothing(folder, tmp_path_factory):
    """At each start somebody writes the text, which a run that has it does not read."""
    cache, undisturbed = tmp_path_factory.mktemp("compiled"), tmp_path_factory.mktemp("undisturbed")
    (undisturbed / "text.txt").write_text(TEXT)
    command = ["train", "--run-dir", "out", *OPTIONS, "--data"]
    run_killed(undisturbed, [], [*command, "text.txt"], cache)
    kill = ["SIGKILL"]
    plans = [
        *(["fsync", 1, kill], ["replace", 1, kill], ["replace after", 1, kill]),  # the copy
        *(["replace after", 2, kill], ["replace", 3, kill], ["replace after", 3, kill]),
        *(["rename after", 1, kill], ["record after", 1, kill]),
    ]
    feeder = subprocess.Popen([sys.executable, "-c", FEED, TEXT], cwd=folder)
    try:
        ends = run_killed(folder, plans, [*command, "fifo"], cache)
    finally:
        feeder.kill()
        feeder.wait()
    assert count_kills(ends) == len(plans)
    assert_same_run(folder, outcome(undisturbed))
