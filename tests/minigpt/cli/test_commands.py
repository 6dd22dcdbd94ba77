"""The command, as people type it."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import types

import pytest
from run_helpers import locked_by_another_process, read_files
from tiny import TEXT

from minigpt.cli.arguments import option_types
from minigpt.cli.commands import COMMANDS, parse
from minigpt.cli.main import main
from minigpt.cli.train import train_settings
from minigpt.config import PRESETS, DropoutConfig
from minigpt.data.tokenizer import Tokenizer
from minigpt.run.directory import RunSpec

TINY = [
    *("--steps", "4", "--batch-size", "3", "--log-every", "1", "--sample-tokens", "20"),
    *("--eval-every", "2", "--eval-batches", "2", "--dropout", "0.1"),
    *("--model.n-layer", "1", "--model.n-embd", "8", "--model.block-size", "16"),
]
UNSET = {"mesh", "parent", "patience", "sample_every", "dropout_schedule_steps", "val_data"}
UNSET |= {"vocab_size", "imported_from", "freeze"}
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
    (folder / "tiny.txt").write_text(TEXT[:10])
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


@pytest.mark.slow
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
    assert set(result) == {"loss", "perplexity", "bits_per_character", "tokens", "step", "data"}
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
        (("finetune", "out", "--data", "tiny.txt", "--run-dir", "f"), "name a validation text"),
        (("eval", "out", "--data", "tiny.txt"), "Give more text."),
        (("train", "--data", "text.txt", "--run-dir", "text.txt"), "it must be a folder"),
        (("sample", "nowhere"), "not a run directory"),
        (("eval", "nowhere"), "not a run directory"),
        (("eval", "changed"), "must be the text that the run was trained on"),
        (("eval", "lost"), "No such file"),
        (("audit", "changed"), "must be the text that the run was trained on"),
        (("audit", "lost"), "No such file"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else None,
)
def test_mistakes_are_one_line_and_exit_code_two(trained, args, message):
    result = minigpt(*args, cwd=trained[0])
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert_remedies_exist(args[0], result.stderr)


def assert_remedies_exist(command, message):
    """The options that a message names are options of the command, or of the one it names."""
    for named in re.finditer(r"minigpt (\w+)|--([a-z][a-z.-]+[a-z])", message.split(": ", 1)[1]):
        if named[1]:
            assert named[1] in COMMANDS, message
            command = named[1]
        else:
            assert named[2] in {*option_types(COMMANDS[command]), "help-all"}, message


@pytest.mark.slow
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


def test_the_same_command_again_says_that_the_run_is_finished(trained):
    """At once, with commands that go on."""
    folder, _ = trained
    before = read_files(folder / "out")
    again = minigpt("train", "--run-dir", "out", *SAME, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "the run in out is finished: it is at step 4 of 4. To train it further" in again.stdout
    assert "sample" not in again.stdout.replace("minigpt sample", "")
    assert read_files(folder / "out") == before
    for words in re.findall(r"minigpt ([^.]+?)(?:\.|\n|$)", again.stdout):
        parse(words.split())


def claimed(folder, config, **options):
    from minigpt.training import claim_run_dir

    with claim_run_dir(folder, "a", config, **options) as run_dir:
        assert (run_dir / ".lock").exists()
        return run_dir.name


def test_the_default_run_directory_is_an_unfinished_one_or_the_first_free(tmp_path):
    config = PRESETS["shakespeare-char-cpu"]
    assert claimed(tmp_path, config) == "a"
    assert not list(tmp_path.iterdir())  # as no run was created
    for name in ("a", "a-2"):
        (tmp_path / name).mkdir()
    assert claimed(tmp_path, config) == "a-3"
    RunSpec(config, Tokenizer("ab"), "0").save(tmp_path / "a")
    assert claimed(tmp_path, config) == "a"
    assert claimed(tmp_path, config, fresh=True) == "a-3"
    assert claimed(tmp_path, dataclasses.replace(config, log_every=7)) == "a"
    assert claimed(tmp_path, dataclasses.replace(config, seed=7)) == "a-3"


def test_a_run_directory_that_another_process_claimed_is_not_chosen(tmp_path):
    config = PRESETS["shakespeare-char-cpu"]
    for name in ("a", "a-2"):
        (tmp_path / name).mkdir()
    RunSpec(config, Tokenizer("ab"), "0").save(tmp_path / "a")
    with locked_by_another_process(tmp_path / "a", tmp_path / "a-2"):
        assert claimed(tmp_path, config) == "a-3"
    assert claimed(tmp_path, config) == "a"


@pytest.mark.slow
def test_three_runs_at_once_take_three_directories(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    command = [sys.executable, "-m", "minigpt", "train", *SAME]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) for _ in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(list((tmp_path / "runs").glob("*/config.toml"))) == 3


def test_a_run_is_finished_when_its_last_step_is_validated(tmp_path):
    import numpy as np

    from minigpt.checkpoint import manager as checkpoint
    from minigpt.data.tokenizer import Tokenizer

    config, run_dir = PRESETS["shakespeare-char-cpu"], tmp_path / "a"
    run_dir.mkdir()
    RunSpec(config, Tokenizer("ab"), "0").save(run_dir)
    with checkpoint.CheckpointWriter(run_dir) as writer:  # stopped in the last validation
        writer.save(config.steps, {"a": np.ones(1)}, {"pending": {}})
    assert claimed(tmp_path, config) == "a"
    record = {"step": config.steps, "val_loss": 1.0}
    (run_dir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert claimed(tmp_path, config) == "a-2"


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "out").mkdir()
    with locked_by_another_process(tmp_path / "out"):
        result = minigpt("train", "--run-dir", "out", *SAME, cwd=tmp_path)
    assert result.returncode == 2
    assert "another process is training in it" in result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_word_of_help_and_every_command_an_example(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help-all"])
    printed = re.sub(r"[\s│|]+", " ", capsys.readouterr().out)
    assert f"$ minigpt {name} " in printed
    for option in option_types(COMMANDS[name]):
        described = re.search(rf" --{option} \S+ (.+?) \((default: |required)", printed)
        assert described, option
        assert len(described[1].split()) >= 2, option


@pytest.mark.parametrize("name", ["train", "finetune", "plan"])
def test_help_shows_what_people_need_first(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    printed = capsys.readouterr().out
    assert 4 <= len(re.findall(r"(?m)^. --", printed)) <= 13
    assert f"minigpt {name} --help-all" in printed


def test_the_examples_of_the_help_parse():
    for command in COMMANDS.values():
        examples = re.findall(r"\$ minigpt (.+)", str(command.__doc__))
        for words in map(shlex.split, examples):
            assert type(parse(words)).__name__ == command.__name__, words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --n_layer 3", "did you mean --model.n-layer?"),
        ("train --model.n-layers 3", "did you mean --model.n-layer?"),
        ("train --learning-rate 3", "did you mean --optim.learning-rate?"),
        ("train --top-k 3", "belongs to minigpt sample"),
        ("sample out --batch-size 3", "belongs to minigpt train"),
        ("train --step 20", "did you mean --steps?"),
        ("train --lr 20", "did you mean --optim.learning-rate?"),
        ("train --max_iters 20", "did you mean --steps?"),
        ("train foo.txt", "--data foo.txt"),
        ("uncertainty out hello", "--text hello"),
        ("trian --steps 3", "did you mean train?"),
        ("--data foo train", "minigpt train --data ..."),
        ("train --zzz", "All its options: minigpt train --help-all"),
    ],
)
def test_an_unknown_option_gets_a_hint(words, message, capsys):
    with pytest.raises(SystemExit):
        main(words.split())
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_numbers_and_booleans_as_people_write_them():
    words = [
        "train",
        "--steps",
        "1e3",
        "--model.bias",
        "--model.remat",
        "false",
        "--batch-size",
        "1_0",
    ]
    options = parse(words).options
    assert (options["steps"], options["batch_size"]) == (1000, 10)
    assert options["model"]["bias"] is True
    assert options["model"]["remat"] is False
    assert parse(["eval", "out", "--json"]).json
    assert not parse(["eval", "--no-json", "out"]).json
    options = parse(["train", "--no-model.bias", "--tensorboard", "True"]).options
    assert options["model"]["bias"] is False
    assert options["tensorboard"] is True
    for words in ("train --steps 1.5", "train --model.bias maybe"):
        with pytest.raises(SystemExit):
            parse(words.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[model]\nn_layers = 3", "'model.n_layers', which is not a setting of a file. Did you"),
        ("n_layer = 3", "Did you mean 'model.n_layer'?"),
        ("dropout = 0.1", "Set --dropout on the command line."),
        ("steps = 'many'", "it sets steps to 'many'"),
        ("[model]\nbias = 7", "it sets model.bias to 7"),
        ("steps = ", "cannot be read"),
    ],
)
def test_a_bad_settings_file_is_one_line(content, message, tmp_path):
    (tmp_path / "bad.toml").write_text(content)
    result = minigpt("train", "--config", "bad.toml", cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("words", "code"), [([], 2), (["help"], 0), (["--help"], 0)])
def test_help_alone_lists_the_commands(words, code, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == code
    printed = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"(?m)^  {name} +\S+ \S+", printed)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"minigpt \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


INTERRUPTED = """
import os, signal, sys
from minigpt.cli.main import run_as_process

def interrupt(event, args):
    if event == "import" and args[0] == module:
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(interrupt)
module, sys.argv[1:] = sys.argv[1], ["train", "--data", "no"]
run_as_process()
"""


SWALLOWED = """
import sys, weakref
from minigpt.cli import main as command

class Anything: pass

def sample(args):
    thing = Anything()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing  # Python ignores what a callback raises
    time.sleep(60)

import signal, time, types
command._import_commands = lambda: types.SimpleNamespace(run=sample)
command.run_as_process()
"""


@pytest.mark.slow
def test_an_interrupt_that_a_callback_swallows_still_ends_the_process():
    command = [sys.executable, "-c", SWALLOWED]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("module", ["tyro", "minigpt.config", "jax", "flax"])
def test_ctrl_c_during_an_import_is_quiet(module, tmp_path):
    command = [sys.executable, "-c", INTERRUPTED, module]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
    assert result.returncode in (-signal.SIGINT, 130)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_unicode_shows_what_it_can(trained, encoding, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    for words in (["train", "--run-dir", "out", *SAME], ["sample", "out"], ["sample", "--help"]):
        result = installed_minigpt(*words, cwd=trained[0])
        assert result.returncode == 0, result.stderr
        assert result.stdout


def test_eval_measures_all_of_another_text(trained):
    """The number is the mean over every token but the first, whatever text the run has."""
    folder, _ = trained
    line = minigpt("eval", "out", "--data", "other.txt", cwd=folder)
    assert line.stdout.startswith("loss on other.txt ")
    assert line.stdout.endswith("by the checkpoint of step 4\n")
    result = json.loads(minigpt("eval", "out", "--data", "short.txt", "--json", cwd=folder).stdout)
    assert (result["tokens"], result["data"], result["step"]) == (599, ["short.txt"], 4)
    (folder / "validation.txt").write_text(TEXT[int(len(TEXT) * 0.9) :])
    own = json.loads(minigpt("eval", "out", "--json", cwd=folder).stdout)
    same = minigpt("eval", "out", "--data", "validation.txt", "--json", cwd=folder)
    assert json.loads(same.stdout) == own | {"data": ["validation.txt"]}
    (folder / "unknown.txt").write_text("Zürich" * 9)
    refused = minigpt("eval", "out", "--data", "unknown.txt", cwd=folder)
    assert refused.returncode == 2
    assert "does not know" in refused.stderr


@pytest.mark.slow
def test_a_validation_text_of_its_own(trained, tmp_path):
    """All of --data is for training; the run goes on, and is measured, with both."""
    folder, _ = trained
    args = ("train", "--data", folder / "text.txt", "--val-data", folder / "short.txt", *TINY)
    result = minigpt(*args, "--run-dir", "own", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{len(TEXT):,} training tokens, 600 validation tokens" in result.stdout
    assert "rough estimate" not in result.stdout
    measured = json.loads(minigpt("eval", "own", "--json", cwd=tmp_path).stdout)
    assert (measured["tokens"], measured["data"]) == (599, None)
    assert "is finished" in minigpt(*args, "--run-dir", "own", cwd=tmp_path).stdout
    replayed = minigpt("replay", "own", "--step", "3", cwd=tmp_path).stdout
    assert "metrics.jsonl has the same" in replayed
    for more in (("--val-data", folder / "other.txt"), ("--val-data", "None")):
        refused = minigpt(*args, *more, "--run-dir", "own", cwd=tmp_path)
        assert "the text that the run was trained on" in refused.stderr


def test_a_short_validation_text_is_said_once(trained):
    assert trained[1].count("the validation text has 9 windows of block_size=16 tokens") == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_settings_files_are_decoded_as_texts_are(tmp_path, encoding):
    (tmp_path / "some.toml").write_bytes("steps = 7\r\ndata = ['a', 'b']\r\n".encode(encoding))
    args = parse(["train", "--config", str(tmp_path / "some.toml"), "--seed", "3"])
    if encoding == "utf-16":
        with pytest.raises(ValueError, match=r"config='.*some.toml' is not allowed: .*UTF-16"):
            train_settings(args)
        return
    settings = train_settings(args)
    assert (settings.steps, settings.seed) == (7, 3)
    assert settings.data == (pathlib.Path("a"), pathlib.Path("b"))


def test_names_that_are_not_utf8_are_one_plain_message(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(path, "w") as file:
        file.write(TEXT)
    for option in ("--data", "--val-data", "--run-dir"):
        result = minigpt("train", option, os.fsdecode(path), *TINY, cwd=tmp_path)
        assert result.returncode == 2
        name = option[2:].replace("-", "_")
        assert f"minigpt: {name}=" in result.stderr
        assert r"caf\udce9.txt' is not allowed: it must be a name in UTF-8" in result.stderr
        assert len(result.stderr.splitlines()) == 1
