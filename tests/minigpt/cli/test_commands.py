"""The command, as people type it."""

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tomllib
import types

import pytest
from tiny import TEXT

from minigpt.cli.main import main, parse
from minigpt.cli.train import train_settings
from minigpt.config import PRESETS, DropoutConfig
from minigpt.data.tokenizer import Tokenizer
from minigpt.run.directory import RunSpec

TINY = [
    *("--steps", "4", "--batch-size", "3", "--log-every", "1", "--sample-tokens", "20"),
    *("--eval-every", "2", "--eval-batches", "2", "--dropout", "0.1"),
    *("--model.n-layer", "1", "--model.n-embd", "8", "--model.block-size", "16"),
]
UNSET = {"mesh", "parent", "patience", "sample_every", "dropout_schedule_steps"}
SAME = ("--data", "text.txt", *TINY)


def minigpt(*args, cwd):
    """Run a command in this process: its exit code, standard output and standard error."""
    out, error, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        try:
            main([*map(str, args)])
        except SystemExit as exit:
            code = exit.code
    return types.SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=error.getvalue())


def installed_minigpt(*args, cwd):
    """Run the installed command with warnings as errors."""
    command = [sys.executable, "-W", "error", "-m", "minigpt", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(TEXT)
    (folder / "short.txt").write_text(TEXT[:600])
    (folder / "other.txt").write_text(TEXT.replace("nobler", "bolner"))
    result = installed_minigpt("train", "--data", "text.txt", "--run-dir", "out", *TINY, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for name, data in (("changed", "short.txt"), ("lost", "no.txt")):
        shutil.copytree(folder / "out", folder / name)
        config = folder / name / "config.toml"
        config.write_text(config.read_text().replace("text.txt", data))
    return folder, result.stdout


def test_train_shows_what_it_does_and_leaves_a_run(trained):
    folder, printed = trained
    for part in ("parameters", "gap", "sample", "tokens/s", "4/4", "run directory: out"):
        assert part in printed
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {
        ".lock",
        "config.toml",
        "tokenizer.json",
        "metrics.jsonl",
        "loss.png",
        "checkpoints",
    }
    assert (folder / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    records = [
        json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [record["step"] for record in records if "val_loss" in record] == [2, 4]
    assert {"train_loss", "tokens_per_s", "elapsed_s"} <= set(records[0])


def test_a_run_knows_its_text(trained):
    folder, _ = trained
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    run = RunSpec.load(folder / "out")
    run.require_same_text(sha256, run.tokenizer)
    with pytest.raises(ValueError, match=f"{sha256}; now it is 0"):
        run.require_same_text("0", run.tokenizer)


def test_config_toml_holds_everything_and_starts_the_same_run(trained):
    folder, _ = trained
    config = RunSpec.load(folder / "out").config
    assert config.model.dropout == DropoutConfig.uniform(0.1)
    tables = tomllib.loads((folder / "out" / "config.toml").read_text())
    names = {field.name for field in dataclasses.fields(config)}
    assert set(tables) == names - UNSET
    result = minigpt("train", "--config", "out/config.toml", cwd=folder)
    assert result.returncode == 0, result.stderr
    folders = ("out", "runs/shakespeare-char-cpu")
    one, other = (
        (folder / name / "checkpoints" / "00000004" / "arrays.safetensors").read_bytes()
        for name in folders
    )
    assert one == other


def test_sample_goes_on_from_the_prompt_and_follows_the_seed(trained):
    folder, _ = trained
    args = ("sample", "out", "--prompt", "To be", "--tokens", 30, "--temperature", 0.9)
    one = minigpt(*args, "--top-k", 5, "--top-p", 0.95, cwd=folder)
    assert one.returncode == 0, one.stderr
    assert one.stdout.startswith("To be")
    assert len(one.stdout.rstrip("\n")) >= 30
    assert minigpt(*args, "--top-k", 5, "--top-p", 0.95, cwd=folder).stdout == one.stdout
    assert minigpt(*args, "--seed", 3, cwd=folder).stdout != one.stdout


def test_a_run_can_be_read_from_anywhere(trained, tmp_path):
    folder, _ = trained
    assert minigpt("eval", folder / "out", cwd=tmp_path).returncode == 0


def test_refused_texts_leave_nothing_behind(trained, tmp_path):
    result = minigpt("train", "--data", trained[0] / "short.txt", cwd=tmp_path)
    assert result.returncode == 2
    assert not list(tmp_path.iterdir())


def test_eval_prints_a_line_or_json(trained):
    folder, _ = trained
    assert "perplexity" in minigpt("eval", "out", cwd=folder).stdout
    result = json.loads(minigpt("eval", "out", "--json", cwd=folder).stdout)
    assert set(result) == {"loss", "perplexity", "bits_per_character", "tokens"}
    assert result["tokens"] == len(TEXT) - int(len(TEXT) * 0.9) - 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("train", "--run-dir", ".", "--data", "text.txt", *TINY), "an empty one or a run"),
        (("train", "--run-dir", "out", "--resume", "never", *SAME), "it contains a run"),
        (("train", "--run-dir", "out", *SAME, "--seed", "7"), "started with 1337"),
        (
            ("train", "--run-dir", "out", *SAME, "--data", "other.txt"),
            "the text that the run was trained on",
        ),
        (("train", "--data", "missing.txt"), "No such file"),
        (("train", "--dropout", "1.5"), "dropout=1.5"),
        (("train", "--config", "missing.toml"), "cannot be read"),
        (("train", "--data", "text.txt", "--model.vocab-size", "3"), "vocab_size=3"),
        (("train", "--data", "text.txt", "--model.block-size", "9999"), "block_size=9999"),
        (("sample", "out", "--prompt", "Zürich"), "does not know"),
        (("sample", "out", "--top-p", "2"), "top_p=2.0"),
        (("sample", "out", "--tokens", "-5"), "tokens=-5"),
        (("train", "--data", "short.txt"), "validation text of 60 tokens"),
        (("train", "--data", "text.txt", "--run-dir", "text.txt"), "File exists"),
        (("sample", "nowhere"), "not a run directory"),
        (("eval", "nowhere"), "not a run directory"),
        (("eval", "changed"), "must be the text that the run was trained on"),
        (("eval", "lost"), "No such file"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else None,
)
def test_mistakes_are_one_line_and_exit_code_two(trained, args, message):
    result = minigpt(*args, cwd=trained[0])
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_mistake_of_the_installed_command(trained):
    result = installed_minigpt("eval", "nowhere", cwd=trained[0])
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "args",
    [
        ("train", "--model.n-layers", "3"),
        ("train", "--preset", "gpt5"),
        ("train", "--steps", "many"),
        ("train", "--config", "bad.toml"),
        ("train", "--dropout", "much"),
        ("fly",),
    ],
    ids=" ".join,
)
def test_unknown_options_are_refused(args, tmp_path):
    (tmp_path / "bad.toml").write_text("[model]\nn_layers = 3\n")
    result = minigpt(*args, cwd=tmp_path)
    assert result.returncode == 2
    assert not list(tmp_path.glob("runs*"))


def test_later_settings_win(tmp_path):
    """Preset, then file, then --dropout, then single options."""
    file = tmp_path / "some.toml"
    file.write_text("steps = 7\n[model]\nn_layer = 3\nbias = true\n")
    args = ["--preset", "shakespeare-char", "--config", str(file)]
    args += ["--dropout", "0.3", "--model.dropout.embed", "0.4", "--model.n-layer", "5"]
    settings = train_settings(parse(["train", *args]))
    assert (settings.batch_size, settings.steps, settings.model.n_layer) == (64, 7, 5)
    assert settings.model.bias is True
    assert settings.model.dropout == dataclasses.replace(DropoutConfig.uniform(0.3), embed=0.4)


def test_presets_are_what_the_command_starts_from():
    for name, config in PRESETS.items():
        assert train_settings(parse(["train", "--preset", name])) == config


def test_the_same_command_again_shows_the_finished_run(trained):
    folder, printed = trained
    before = (folder / "out" / "metrics.jsonl").read_bytes()
    again = minigpt("train", "--run-dir", "out", *SAME, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert printed[printed.index(" sample ") :] == again.stdout[again.stdout.index(" sample ") :]
    assert (folder / "out" / "metrics.jsonl").read_bytes() == before


def test_the_default_run_directory_is_an_unfinished_one_or_the_first_free(tmp_path):
    from minigpt.training import choose_run_dir

    config = PRESETS["shakespeare-char-cpu"]
    assert choose_run_dir(tmp_path, "a", config).name == "a"
    for name in ("a", "a-2"):
        (tmp_path / name).mkdir()
    assert choose_run_dir(tmp_path, "a", config).name == "a-3"
    RunSpec(config, Tokenizer("ab"), "0").save(tmp_path / "a")
    assert choose_run_dir(tmp_path, "a", config).name == "a"
    assert choose_run_dir(tmp_path, "a", config, fresh=True).name == "a-3"
    assert choose_run_dir(tmp_path, "a", dataclasses.replace(config, log_every=7)).name == "a"
    assert choose_run_dir(tmp_path, "a", dataclasses.replace(config, seed=7)).name == "a-3"


def test_a_run_is_finished_when_its_last_step_is_validated(tmp_path):
    import numpy as np

    from minigpt.checkpoint import manager as checkpoint
    from minigpt.data.tokenizer import Tokenizer
    from minigpt.training import choose_run_dir

    config, run_dir = PRESETS["shakespeare-char-cpu"], tmp_path / "a"
    run_dir.mkdir()
    RunSpec(config, Tokenizer("ab"), "0").save(run_dir)
    with checkpoint.CheckpointWriter(run_dir) as writer:  # stopped in the last validation
        writer.save(config.steps, {"a": np.ones(1)}, {"pending": {}})
    assert choose_run_dir(tmp_path, "a", config) == run_dir
    record = {"step": config.steps, "val_loss": 1.0}
    (run_dir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert choose_run_dir(tmp_path, "a", config).name == "a-2"


def test_a_folder_in_use_is_refused(tmp_path):
    import filelock

    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "out").mkdir()
    with filelock.FileLock(tmp_path / "out" / ".lock"):
        result = minigpt("train", "--run-dir", "out", *SAME, cwd=tmp_path)
    assert result.returncode == 2
    assert "another process is training in it" in result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock"}


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    for option in ("--preset", "--config", "--dropout", "--model.dropout.drop-path", "--seed"):
        assert option in printed
