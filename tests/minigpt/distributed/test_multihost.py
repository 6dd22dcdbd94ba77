"""Two and four processes on loopback: the run of one process of as many devices."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from run_helpers import ONE_OF_MANY_PROCESSES
from tiny import TEXT

from minigpt.checkpoint import manager as checkpoint
from minigpt.data.batches import window_offsets
from minigpt.data.dataset import load_dataset
from minigpt.run import metrics

HERE = pathlib.Path(__file__).parent
BOUND_S = 90  # by which the others have ended when one process dies; HEARTBEAT_S is 20
COMMAND = [
    *("train", "--data", "text.txt", "--dropout", "0.25", "--batch-size", "4"),
    *("--log-every", "2", "--sample-tokens", "2", "--eval-every", "10", "--eval-batches", "2"),
    *("--model.n-layer", "1", "--model.n-embd", "8", "--model.block-size", "16"),
]


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "text.txt").write_text(TEXT)
    return folder


def start_processes(folder, run_dir, processes, devices, steps=20, more=lambda number: ()):
    """Start the processes of one run."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {
        "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    address, started = f"127.0.0.1:{free_port()}", []
    for number in range(processes):
        rows = folder / f"{run_dir}-{number}.rows"
        words = [sys.executable, str(ONE_OF_MANY_PROCESSES), str(rows), *COMMAND]
        words += ["--run-dir", run_dir, "--steps", str(steps), *more(number)]
        if processes > 1:
            words += ["--coordinator", address, "--num-processes", str(processes)]
            words += ["--process-id", str(number)]
        with (folder / f"{run_dir}-{number}.log").open("a") as log:
            streams = {"stdout": log, "stderr": log}
            started.append(subprocess.Popen(words, cwd=folder, env=environment, **streams))
    return started


def outcome(folder, run_dir):
    """The losses, and the arrays of the last checkpoint."""
    timed = ("tokens_per_s", "elapsed_s")
    records = metrics.read_metrics(folder / run_dir)
    records = [{k: v for k, v in record.items() if k not in timed} for record in records]
    arrays, _ = checkpoint.read(folder / run_dir, checkpoint.list_steps(folder / run_dir)[-1])
    return records, {name: array.tobytes() for name, array in arrays.items()}


def finish(folder, started, run_dir):
    codes = [process.wait(timeout=300) for process in started]
    logs = [path.read_text()[-2000:] for path in sorted(folder.glob(f"{run_dir}-*.log"))]
    assert codes == [0] * len(started), "\n".join(logs)


@pytest.fixture(scope="module")
def whole(folder):
    """The losses of one process of four devices."""
    finish(folder, start_processes(folder, "one", 1, 4), "one")
    return outcome(folder, "one")[0]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.torture)])
def test_losses_are_those_of_one_process_and_rows_are_read_once(folder, whole, processes):
    run_dir, share, read = f"of-{processes}", 4 // processes, []
    finish(folder, start_processes(folder, run_dir, processes, share), run_dir)
    records, _ = outcome(folder, run_dir)
    assert [record["step"] for record in records] == list(range(2, 21, 2))
    for one, other in zip(whole, records, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=1e-6)

    tokens: Any = load_dataset(folder / "text.txt", "char").train
    for number in range(processes):
        lines = (folder / f"{run_dir}-{number}.rows").read_text().splitlines()
        rows = [row for line in lines for row in json.loads(line)]
        read.append(np.reshape(rows, (20, share)))
    expected = [window_offsets(tokens, 1337, step, 4, 16) for step in range(20)]
    np.testing.assert_array_equal(np.concatenate(read, axis=1), expected)


@pytest.mark.torture  # a minute
def test_when_one_process_dies_the_others_end_and_the_run_goes_on_exactly(folder):
    finish(folder, start_processes(folder, "whole", 2, 1, steps=200), "whole")
    started = start_processes(folder, "killed", 2, 1, steps=200)
    while not (folder / "killed" / "metrics.jsonl").exists() or not checkpoint.list_steps(
        folder / "killed"
    ):
        assert all(process.poll() is None for process in started)
        time.sleep(0.05)
    started[1].kill()
    started[1].wait()
    begin_waiting = time.monotonic()
    assert started[0].wait(timeout=BOUND_S) != 0
    print(f"the other process ended after {time.monotonic() - begin_waiting:.1f} s")
    assert checkpoint.list_steps(folder / "killed")[-1] < 200
    finish(folder, start_processes(folder, "killed", 2, 1, steps=200), "killed")
    assert outcome(folder, "killed") == outcome(folder, "whole")


@pytest.mark.slow
def test_processes_of_different_settings_all_end(folder):
    started = start_processes(folder, "unlike", 2, 1, more=lambda number: ("--seed", str(number)))
    assert [process.wait(timeout=BOUND_S) for process in started] == [2, 2]
    for number in range(2):
        log = (folder / f"unlike-{number}.log").read_text()
        assert "settings or texts differ between the processes" in log
    assert not (folder / "unlike").exists()


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_all(folder):
    (folder / "taken").mkdir()
    (folder / "taken" / "other.txt").write_text("mine")
    started = start_processes(folder, "taken", 2, 1)
    codes = [process.wait(timeout=BOUND_S) for process in started]
    assert codes[0] == 2
    assert codes[1] != 0
    assert "must be a new folder, an empty one or a run" in (folder / "taken-0.log").read_text()


@pytest.mark.slow
def test_a_stop_of_one_process_stops_all_and_the_run_goes_on(folder):
    started = start_processes(folder, "stopped", 2, 1, steps=2000)
    while not checkpoint.list_steps(folder / "stopped"):
        assert all(process.poll() is None for process in started)
        time.sleep(0.05)
    started[1].terminate()
    finish(folder, started, "stopped")
    step = checkpoint.list_steps(folder / "stopped")[-1]
    assert 0 < step < 2000
    assert f"stopped at step {step}" in (folder / "stopped-0.log").read_text()


@pytest.mark.slow
def test_a_part_of_the_flags_is_an_error(folder):
    words = [sys.executable, "-m", "minigpt", *COMMAND, "--process-id", "1"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "are not allowed: set all three" in done.stderr
    assert len(done.stderr.splitlines()) == 1
