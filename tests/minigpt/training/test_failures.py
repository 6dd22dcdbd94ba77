"""Trouble, really made: a line that names it, the last good checkpoint as it was, no leftovers.

And when the trouble is gone, the same command ends as if there had been none.
"""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys

import jax
import pytest
from fake_wandb import FakeWandb
from marks import slow
from run_helpers import (
    OTHER_VALUES,
    assert_one_line_error,
    flatten_config,
    flip_bit,
    largest_file,
    limit_file_size,
    locked_by_another_process,
    read_files,
    replace_field,
    run_command,
    stop_after_step,
)
from tiny import TEXT, outcome

from minigpt.checkpoint import manager as checkpoint
from minigpt.checkpoint.manifest import ARRAYS, MANIFEST
from minigpt.cli.main import main
from minigpt.config import Config
from minigpt.run import metrics
from minigpt.run import open as opening
from minigpt.run.directory import RunSpec
from minigpt.training import trainer

LAST = 12
COMMAND = [
    *("train", "--data", "text.txt", "--run-dir", "out", "--dropout", "0.25"),
    *("--model.dropout.mlp-hidden", "0.25", "--model.dropout.drop-path", "0.25"),
    *("--steps", str(LAST), "--batch-size", "3", "--log-every", "2", "--sample-tokens", "2"),
    *("--eval-every", "4", "--eval-batches", "2", "--keep-checkpoints", "2"),
    *("--model.n-layer", "1", "--model.n-embd", "8", "--model.block-size", "16"),
]


def train(capsys, *more):
    """The command in this process: its exit code, standard output and standard error."""
    return run_command(capsys, *COMMAND, *more)


def is_intact(folder, *steps):
    """Nothing is half written, and every checkpoint can be restored."""
    assert not list(folder.rglob("*.partial"))
    if steps:
        assert checkpoint.list_steps(folder / "out") == list(steps)
    for step in checkpoint.list_steps(folder / "out"):
        checkpoint.read(folder / "out", step)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, and one that was stopped after step 6, with checkpoints of the steps 4 and 6."""
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        for name in ("whole", "stopped"):
            folder = tmp_path_factory.mktemp(name)
            (folder / "text.txt").write_text(TEXT)
            patch.chdir(folder)
            if name == "stopped":
                patch.setattr(metrics.MetricsLog, "add", stop_after_step(6, metrics.MetricsLog.add))
            main(COMMAND)
        whole = tmp_path_factory.getbasetemp() / "whole0"
        return outcome(whole), whole / "out", folder / "out"


@pytest.fixture
def whole(runs):
    return runs[0]


@pytest.fixture
def stopped(runs, folder):
    """A copy of the stopped run, in this test's folder."""
    copy, config = shutil.copytree(runs[2], folder / "out"), folder / "out" / "config.toml"
    config.write_text(config.read_text().replace(str(runs[2].parent), str(folder)))
    return copy


def ends_the_same(capsys, folder, whole):
    code, out, err = train(capsys)
    assert (code, err) == (0, "")
    assert outcome(folder) == whole
    is_intact(folder)
    return out


def test_without_trouble(whole, stopped, folder, capsys):
    is_intact(folder, 4, 6)
    assert [record["step"] for record in whole[1]] == [2, 4, 6, 8, 10, 12]
    ends_the_same(capsys, folder, whole)


# The disk is full.


FILES = {
    "tokenizer.json": [],
    "config.toml": [],
    "checkpoints/{}/arrays.safetensors": [],
    "loss.png": [8, 12],
}


@pytest.mark.parametrize(
    "name",
    [name if "arrays" in name else slow(name) for name in FILES],
)
def test_no_room_for_a_file(runs, folder, capsys, name):
    """Each file is larger than those written before it, so it is the first without room."""
    sizes = [(runs[1] / each.format(f"{LAST:08d}")).stat().st_size for each in FILES]
    assert sizes == sorted(sizes)
    at = list(FILES).index(name)
    with limit_file_size((sizes[at] + (sizes[at - 1] if at else 0)) / 2):
        ended = train(capsys)
    assert_one_line_error(ended, "File too large", name.rpartition("/")[2])
    is_intact(folder, *FILES[name])
    assert (folder / "out").exists() == (at > 1)
    ends_the_same(capsys, folder, runs[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.toml", "arrays.safetensors"])
def test_no_room_for_a_run_that_goes_on(stopped, folder, capsys, whole, name):
    before = read_files(stopped)
    del before[stopped / "metrics.jsonl"], before[stopped / "loss.png"]
    with limit_file_size(largest_file(stopped, name) - 1):
        assert_one_line_error(train(capsys), "File too large", name)
    is_intact(folder, 4, 6)
    assert before.items() <= read_files(stopped).items()
    ends_the_same(capsys, folder, whole)


@pytest.mark.slow
def test_no_room_for_a_record(stopped, folder, capsys, whole, monkeypatch):
    add = metrics.MetricsLog.add

    def added(self, record):
        with limit_file_size((stopped / "metrics.jsonl").stat().st_size + 30):
            add(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsLog, "add", added)
        assert_one_line_error(train(capsys), "File too large: 'out/metrics.jsonl'")
    assert not (stopped / "metrics.jsonl").read_text().endswith("\n")
    assert len(metrics.read_metrics(stopped)) == 3
    is_intact(folder, 4, 6)
    ends_the_same(capsys, folder, whole)


@pytest.mark.slow
def test_a_stop_whose_checkpoint_has_no_room_is_no_success(runs, folder, capsys, monkeypatch):
    with limit_file_size(largest_file(runs[1], ARRAYS) - 1), monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsLog, "add", stop_after_step(2, metrics.MetricsLog.add))
        assert_one_line_error(train(capsys), "File too large", ARRAYS)
    is_intact(folder)
    ends_the_same(capsys, folder, runs[0])


@pytest.mark.slow
def test_a_stop_while_validating_and_then_no_room(runs, folder, capsys, monkeypatch):
    """The record of step 4 is on disk, and in the checkpoint too, as one that is to come."""
    validate = trainer.Trainer.validate

    def stopping(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "validate", stopping)
        assert train(capsys)[0] == 0
    assert checkpoint.read(folder / "out", 4)[1]["pending"]
    with limit_file_size(largest_file(runs[1], ARRAYS) - 1):
        assert_one_line_error(train(capsys), "File too large", ARRAYS)
    assert [record["step"] for record in metrics.read_metrics(folder / "out")][:2] == [2, 4]
    is_intact(folder, 4)
    ends_the_same(capsys, folder, runs[0])


def test_an_error_with_no_name_gets_one(folder, capsys, monkeypatch):
    """As a full disk gives it where no byte is written any more: at the flush."""

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert_one_line_error(train(capsys), "No space left on device: 'out/tokenizer.json'")
    assert not (folder / "out").exists()


def minigpt(folder, *args, before=()):
    """The command in a process of its own, with warnings as errors."""
    words = [*before, sys.executable, "-W", "error", "-m", "minigpt", *(args or COMMAND)]
    done = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


ALONE = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]


def can_mount():
    if not shutil.which("unshare"):
        return False
    command = [*ALONE, "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


FULL = """
set -e
mount -t tmpfs -o size=$1 none out
shift
"$@" 2> full.err || echo $? > full.code
find out -name '*.partial' > full.partial
mount -o remount,size=10m out
"$@"
cp -r out kept
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(runs, folder):
    """A file system of its own, with room for one checkpoint; then it is made larger."""
    if not can_mount():
        pytest.skip("a file system may not be mounted here")
    (folder / "out").mkdir()
    size = int(1.5 * largest_file(runs[1], ARRAYS)) + largest_file(runs[1], MANIFEST)
    script = [*ALONE, "sh", "-c", FULL, "sh", str(size)]
    code, _, printed = minigpt(folder, before=script)
    assert (code, printed) == (0, "")
    error = (folder / "full.err").read_text()
    assert_one_line_error(
        (int((folder / "full.code").read_text()), "", error), "No space left", "out/"
    )
    assert (folder / "full.partial").read_text() == ""
    (folder / "out").rmdir()
    (folder / "kept").rename(folder / "out")
    assert outcome(folder) == runs[0]


# A folder may not be written, or is taken.


# Root, too, may write only where permissions let it, without this capability.
BOUND = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
bound = pytest.mark.skipif(
    bool(BOUND) and not shutil.which("setpriv"), reason="permissions do not bind root"
)


@bound
@pytest.mark.parametrize("name", [slow("out"), slow("out/checkpoints")])
def test_a_read_only_run_directory(stopped, folder, capsys, whole, name):
    before = read_files(stopped)
    del before[stopped / "metrics.jsonl"], before[stopped / "loss.png"]
    (folder / name).chmod(0o555)
    ended = minigpt(folder, before=BOUND)
    (folder / name).chmod(0o755)
    assert_one_line_error(ended, "Permission denied", f"'{name}/")
    is_intact(folder, 4, 6)
    assert before.items() <= read_files(stopped).items()
    ends_the_same(capsys, folder, whole)


@pytest.mark.slow
@bound
def test_a_read_only_place_for_a_new_run(folder, capsys, whole):
    folder.chmod(0o555)
    ended = minigpt(folder, before=BOUND)
    folder.chmod(0o755)
    assert_one_line_error(ended, "Permission denied: 'out'")
    assert [path.name for path in folder.iterdir()] == ["text.txt"]


def test_a_folder_in_use(stopped, folder, capsys, whole):
    before = read_files(stopped)
    with locked_by_another_process(stopped):
        assert_one_line_error(train(capsys), "'out'", "another process is training in it")
    assert read_files(stopped) == before
    ends_the_same(capsys, folder, whole)


# The text is missing or another one.


@pytest.mark.slow
def test_a_missing_text(stopped, folder, capsys, whole):
    before = read_files(stopped)
    (folder / "text.txt").rename(folder / "elsewhere.txt")
    assert_one_line_error(train(capsys), "text.txt' cannot be read: No such file")
    assert read_files(stopped) == before
    (folder / "elsewhere.txt").rename(folder / "text.txt")
    ends_the_same(capsys, folder, whole)


@pytest.mark.parametrize("how", [slow("saved"), "begun", slow("forged")])
def test_a_changed_text(stopped, folder, capsys, whole, how):
    """Of the same length and alphabet; its hash is in tokenizer.json and in every checkpoint."""
    other = TEXT.replace("nobler", "bolner")
    assert sorted(other) == sorted(TEXT)
    (folder / "text.txt").write_text(other)
    about = stopped / "tokenizer.json"
    good = about.read_text()
    if how == "begun":
        shutil.rmtree(stopped / "checkpoints")
    if how == "forged":
        now = hashlib.sha256(other.encode()).hexdigest()
        about.write_text(good.replace(RunSpec.load(stopped).data_sha256, now))
    before = read_files(stopped)
    assert_one_line_error(train(capsys), "text.txt", "must be the text that the run was trained on")
    assert read_files(stopped) == before
    (folder / "text.txt").write_text(TEXT)
    about.write_text(good)
    ends_the_same(capsys, folder, whole)


# The settings are others.


def test_what_may_change_and_what_may_not(stopped):
    """Every field is one or the other.

    test_dropout_schedule.py has the schedule's steps, test_subword_runs.py vocab_size, and
    test_lora.py the settings that need LoRA.
    """
    spec, before = RunSpec.load(stopped), read_files(stopped)
    elsewhere = {"dropout_schedule_steps", "vocab_size"}
    elsewhere |= {"model.lora.alpha", "model.lora.targets", "model.dropout.lora"}
    elsewhere |= {"model.rope_theta"}  # it needs rotary positions, which may not change either
    names, changes = (
        {name for name, _ in flatten_config(Config())} - elsewhere,
        OTHER_VALUES | {"model.remat": True, "extended_from": ((2, 2),)},
    )
    changes |= {"freeze": 1, "model.lora.rank": 2}
    changes |= {"parent": stopped, "parent_checkpoint": "best", "imported_from": "gpt2"}
    assert names >= opening.MAY_CHANGE
    for name in sorted(names - opening.MAY_CHANGE):
        run = spec._replace(config=replace_field(spec.config, name, changes[name]))
        if run.config == spec.config:
            run = spec._replace(config=replace_field(spec.config, name, 2 * changes[name]))
        with pytest.raises(ValueError, match=f"^{name}=.* is not allowed: .* was started with"):
            opening.create_or_resume(run, stopped)
    assert read_files(stopped) == before


@pytest.mark.slow
def test_what_may_change_changes_no_parameter(stopped, folder, capsys, whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    changes = {
        "data": folder / "moved.txt",
        "text-field": "body",
        "run-dir": folder / "moved",
        "log-every": 3,
        "eval-batches": 3,
        "sample-tokens": 5,
        "keep-checkpoints": 3,
        "patience": 9,
        "tensorboard": True,
        "profile-steps": 2,
        "sample-every": 1,
        "wandb": True,
    }
    changed = {name.replace("-", "_") for name in changes}
    # test_mesh.py has the mesh: to rounding. Another val_data must be the same text.
    assert changed | {"mesh", "val_data"} == opening.MAY_CHANGE
    (folder / "text.txt").rename(folder / "moved.txt")
    stopped.rename(folder / "moved")
    options = [word for name, value in changes.items() for word in (f"--{name}", value)]
    code, out, err = train(capsys, *options)
    assert (code, err) == (0, "")
    assert "resuming from step 6" in out
    (folder / "moved").rename(stopped)
    assert outcome(folder)[0] == whole[0]
    assert [record["step"] for record in metrics.read_metrics(stopped)] == [2, 4, 6, 8, 9, 12]
    config = RunSpec.load(stopped).config
    assert (config.data, config.log_every, config.patience) == ((folder / "moved.txt",), 3, 9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.toml", lambda text: text[: len(text) // 2] + "["),
        ("config.toml", lambda text: "model = 3\n" + text[: text.index("[")]),
        ("config.toml", lambda text: "steeps = 3\n" + text),
        ("config.toml", lambda text: text.replace("batch_size = 3", "batch_size = 0")),
        ("config.toml", lambda text: "\udcff"),
        ("tokenizer.json", lambda text: text[:-5]),
        ("tokenizer.json", lambda text: "[]"),
        ("tokenizer.json", lambda text: ""),
    ],
)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_damaged_description(stopped, folder, capsys, name, damage, command):
    path = stopped / name
    good = path.read_bytes()
    path.write_text(damage(good.decode()), errors="surrogateescape")
    before = read_files(stopped)
    with pytest.raises(SystemExit) as ended:
        main(COMMAND if command == "train" else ["eval", "out"])
    assert_one_line_error(
        (ended.value.code, "", capsys.readouterr().err), f"out/{name}", "is damaged"
    )
    assert read_files(stopped) == before


# Checkpoints are damaged.


@pytest.mark.parametrize("name", [slow(ARRAYS), MANIFEST])
def test_a_damaged_newest_checkpoint(stopped, folder, capsys, whole, name):
    flip_bit(stopped / "checkpoints" / "00000006" / name)
    code, printed, err = train(capsys)
    assert (code, err) == (0, "")
    if name == MANIFEST:  # nobody can say what it is, so it stays for a look
        shutil.rmtree(stopped / "checkpoints" / "00000006")
    assert outcome(folder) == whole
    printed = " ".join(printed.split())
    assert "skipping the checkpoint of step 6: " in printed
    assert "step 4 is the newest valid checkpoint" in printed
    assert "resuming from step 4" in printed


@pytest.mark.slow
def test_every_checkpoint_damaged(stopped, folder, capsys, whole):
    for step in ("00000004", "00000006"):
        flip_bit(stopped / "checkpoints" / step / ARRAYS)
    before = read_files(stopped)
    assert_one_line_error(
        train(capsys), "out/checkpoints'", "none of its checkpoints", "(steps 4, 6)"
    )
    assert read_files(stopped) == before
    flip_bit(stopped / "checkpoints" / "00000006" / ARRAYS)
    ends_the_same(capsys, folder, whole)


# metrics.jsonl is damaged.


@pytest.mark.parametrize("torn", [b'{"step": 8, "train_lo', b"\0" * 100, b"\xff"])
@pytest.mark.slow
def test_a_torn_last_record(stopped, folder, capsys, whole, torn):
    with (stopped / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    ends_the_same(capsys, folder, whole)


def lines(change):
    def changed(data):
        whole = data.splitlines(keepends=True)
        change(whole)
        return b"".join(whole)

    return changed


DAMAGES = {
    "a line is missing": lines(lambda each: each.pop(1)),
    "the last line is missing": lines(lambda each: each.pop()),
    "a line is there twice": lines(lambda each: each.insert(1, each[1])),
    "a line is torn": lines(lambda each: each.__setitem__(1, each[1][:20] + b"\n")),
    "a line is no record": lines(lambda each: each.__setitem__(1, b"[]\n")),
    "a line has no step": lines(lambda each: each.__setitem__(1, b"{}\n")),
    "a byte is no UTF-8": lambda data: data.replace(b"step", b"st\xffp", 1),
    "a number is another": lambda data: data.replace(b'"train_loss": 3', b'"train_loss": 2', 1),
    "it is empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_records(stopped, folder, capsys, damage):
    path = stopped / "metrics.jsonl"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    before = read_files(stopped)
    assert_one_line_error(
        train(capsys), "'out/metrics.jsonl' is damaged: ", "Restore it from a copy"
    )
    assert read_files(stopped) == before


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_records_put_back_or_given_up(stopped, folder, capsys, whole):
    path = stopped / "metrics.jsonl"
    good = path.read_bytes()
    path.write_bytes(b"")
    assert_one_line_error(train(capsys), "metrics.jsonl")
    copy = shutil.copytree(stopped, folder / "copy")
    path.write_bytes(good)
    ends_the_same(capsys, folder, whole)
    shutil.rmtree(stopped)
    copy.rename(stopped)
    path.unlink()
    with pytest.MonkeyPatch.context() as patch:  # it ends after a record, before a checkpoint
        patch.setattr(metrics.MetricsLog, "sync", interrupt)
        assert train(capsys)[0] == 130
    assert [record["step"] for record in metrics.read_metrics(stopped)] == [8]
    code, out, err = train(capsys)
    assert (code, err) == (0, "")
    assert "'out/metrics.jsonl' is missing: there are no records up to step 6" in out
    assert outcome(folder)[0] == whole[0]
    assert outcome(folder)[1] == [record for record in whole[1] if record["step"] > 6]
