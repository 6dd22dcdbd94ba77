"""Memory that does not grow with the text, one core, and no second tokenization."""

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt.data import text as corpus

MB = 10**6
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")

# A process's own peak: that of getrusage counts what it was forked from.
PEAK = """
import re, sys
from pathlib import Path
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
"""
LOAD = (
    PEAK
    + """
from minigpt.data import load_dataset, make_batch
before = peak()
dataset = load_dataset(Path(sys.argv[1]), "char")
for step in range(1000):
    make_batch(dataset.train, 0, step, 12, 64)
print(peak() - before)
"""
)
TRAIN = (
    PEAK
    + """
from minigpt.cli.main import main
main(sys.argv[1:])
print("peak", peak())
"""
)


def write_text(path, size):
    """The plays and some characters beyond ASCII, again and again."""
    text = corpus.load_text()
    plays = (text.train + "Z\u00fcrich \u2014 \u65e5\u672c \U0001f600\n" + text.validation).encode()
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(plays)


@pytest.fixture(autouse=True)
def devices_of_a_user(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # eight, in other tests


def python(code, *args, **settings):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=True, **settings).stdout


@pytest.mark.slow
def test_a_text_takes_the_same_memory_whatever_its_size(tmp_path):
    """At once, 60 MB would take 480: four bytes a character and as many for codes; the ids, 120."""
    write_text(tmp_path / "text", 60 * MB)
    for _ in ("tokenized", "from the cache"):
        assert int(python(LOAD, tmp_path / "text")) < 100 * MB


def peak_of(printed):
    match = re.search(r"^peak (\d+)$", printed, re.MULTILINE)
    assert match
    return int(match[1])


def train(folder, *args):
    """Train for a few steps: the seconds to the first, and the peak of memory."""
    name = str(len(list(folder.iterdir())))
    run_dir = folder / name
    args = ["train", "--run-dir", str(run_dir), "--steps", "30", "--log-every", "1", *args]
    start_time = time.monotonic()
    with (folder / f"{name}.txt").open("w+") as output:
        process = subprocess.Popen([sys.executable, "-c", TRAIN, *args], stdout=output)
        metrics = run_dir / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.1)
        first_step = time.monotonic() - start_time
        assert process.wait() == 0
        output.seek(0)
        return first_step, peak_of(output.read())


@pytest.mark.torture
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_gigabyte_trains_in_the_memory_of_five_megabytes(tmp_path, monkeypatch, tokenizer):
    """And its second run starts within seconds of the small text's."""
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    small, large, runs = tmp_path / "small", tmp_path / "large", tmp_path / "runs"
    runs.mkdir()
    write_text(small, 5 * MB)
    write_text(large, 1000 * MB)
    small_start, small_peak = train(runs, "--tokenizer", tokenizer, "--data", str(small))
    _, first_peak = train(runs, "--tokenizer", tokenizer, "--data", str(large))
    cached = {path: path.stat() for path in (tmp_path / "cache").iterdir()}
    assert sum(stat.st_size for stat in cached.values()) > 2000 * MB - 100 * MB
    second_start, second_peak = train(runs, "--tokenizer", tokenizer, "--data", str(large))
    assert {p: p.stat().st_mtime_ns for p in cached} == {
        p: s.st_mtime_ns for p, s in cached.items()
    }
    print(f"{small_start=} {second_start=} {small_peak=} {first_peak=} {second_peak=}")
    assert max(first_peak, second_peak) - small_peak < 500 * MB
    assert second_start - small_start < 20
    large.unlink()


@pytest.mark.torture
def test_the_default_run_ends_on_one_core_in_little_memory(tmp_path):
    """As under `ulimit -v 4000000 -d 1000000`, of which it takes about half."""

    def limited():
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        resource.setrlimit(resource.RLIMIT_AS, (4000 * MB, 4000 * MB))
        resource.setrlimit(resource.RLIMIT_DATA, (1000 * MB, 1000 * MB))  # what it alone holds

    output = python(
        TRAIN, "train", "--steps", "60", cwd=tmp_path, preexec_fn=limited, stdin=subprocess.DEVNULL
    )
    assert "run directory: runs/shakespeare-char-cpu" in output
