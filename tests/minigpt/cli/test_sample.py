"""minigpt sample: prompts, samples, stop texts, checkpoints and interruption."""

import functools
import io
import json
import os
import signal
import subprocess
import sys

import pytest
from rich.console import Console
from run_helpers import replace_field, run_command
from tiny import CONFIG, TEXT

from minigpt import checkpoint
from minigpt.cli import sample
from minigpt.training import train

ONE_LINE = TEXT.replace("\n", "\t")


def train_tiny(folder, text, **settings):
    (folder / "text.txt").write_text(text)
    config = CONFIG
    for name, value in {"data": folder / "text.txt", "sample_tokens": 0, **settings}.items():
        config = replace_field(config, name, value)
    train(config, folder / "out", Console(quiet=True))
    return folder / "out"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of a text, one of a text without a newline, and one of bytes."""
    folders = [tmp_path_factory.mktemp(name) for name in ("char", "line", "byte")]
    settings = [{}, {"steps": 1}, {"steps": 1, "tokenizer": "byte"}]
    texts = [TEXT, ONE_LINE, TEXT]
    return [
        train_tiny(*one, **more)
        for one, more in zip(zip(folders, texts, strict=True), settings, strict=True)
    ]


@pytest.fixture
def run(capsys):
    return functools.partial(run_command, capsys, "sample")


@pytest.mark.slow
def test_sample_i_is_the_only_one_of_its_seed(runs, run):
    words = (runs[0], "--tokens", 40, "--prompt", "To be")
    code, out, _ = run(*words, "--num-samples", 3, "--seed", 2**32 - 1)
    assert code == 0
    samples = out.removesuffix("\n").split(f"\n{sample.SEPARATOR}\n")
    alone = [run(*words, "--seed", seed)[1].removesuffix("\n") for seed in (2**32 - 1, 0, 1)]
    assert samples == alone
    assert len(set(samples)) == 3


@pytest.mark.slow
def test_each_line_of_a_file_is_a_prompt(runs, run, tmp_path):
    prompts = ["To be", "Whether 'tis nobler in the mind and more", "in"]
    (tmp_path / "prompts").write_bytes("\r\n".join(prompts).encode() + b"\r\n")
    words = (runs[0], "--tokens", 30, "--num-samples", 2)
    _, out, _ = run(*words, "--prompts-file", tmp_path / "prompts")
    alone = [run(*words, "--prompt", prompt)[1] for prompt in prompts]
    assert out == f"{sample.SEPARATOR}\n".join(alone)


def test_a_file_can_be_the_prompt(runs, run, tmp_path):
    (tmp_path / "prompt").write_bytes(b"To be,\r\nor not")
    words = (runs[0], "--tokens", 9)
    whole = run(*words, "--prompt-file", tmp_path / "prompt")[1]
    assert whole.startswith("To be,\nor not")
    assert whole == run(*words, "--prompt", "To be,\r\nor not")[1]
    assert whole == run(*words, "--prompt", r"To be,\nor not", "--escapes")[1]


def test_escapes_are_read_by_choice_only(runs, run):
    code, _, error = run(runs[0], "--prompt", r"To\n")
    assert (code, "does not know" in error) == (2, True)


def test_without_a_prompt_the_alphabet_gives_one(runs, run):
    assert run(runs[0], "--tokens", 3)[1].startswith("\n")
    code, out, _ = run(runs[1], "--tokens", 3)
    assert (code, out[0]) == (0, "\t")


def test_a_stop_text_ends_each_sample(runs, run):
    words = (runs[0], "--tokens", 60, "--num-samples", 4, "--prompt", "To")
    separator = f"\n{sample.SEPARATOR}\n"
    whole = run(*words)[1].removesuffix("\n").split(separator)
    stopped = run(*words, "--stop", "e")[1].removesuffix("\n").split(separator)
    assert stopped == [text.partition("e")[0] for text in whole]
    assert stopped != whole


def test_bytes_become_whole_characters(runs, run, monkeypatch):
    written = []
    monkeypatch.setattr(sample.sys.stdout, "write", written.append)
    code, *_ = run(runs[2], "--tokens", 30, "--prompt", "é")
    assert code == 0
    assert len(written) > 3
    assert "".join(written).startswith("é")


def test_the_first_sample_is_printed_as_it_is_drawn(runs, capsys):
    """The others wait, also when they end first; Ctrl-C keeps what is printed."""

    def pieces():
        yield sample_piece(1, " b", True)
        assert capsys.readouterr().out == "one"
        yield sample_piece(0, " a", False)
        assert capsys.readouterr().out == " a"
        yield sample_piece(0, "", True)
        assert capsys.readouterr().out == f"\n{sample.SEPARATOR}\ntwo b\n{sample.SEPARATOR}\nthree"
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        sample.print_as_drawn(["one", "two", "three"], pieces())
    assert capsys.readouterr().out == "\n"


def sample_piece(*fields):
    from minigpt.tasks.inference import Piece

    return Piece(*fields)


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_written(runs):
    command = [sys.executable, "-m", "minigpt", "sample", str(runs[0]), "--tokens", "9999999"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        written = os.read(process.stdout.fileno(), 1)
        while len(written) < 200:
            written += os.read(process.stdout.fileno(), 100)
        process.send_signal(signal.SIGINT)
        rest, error = process.communicate()
    assert process.returncode == 130
    assert (written + rest).endswith(b"\n")
    assert b"Traceback" not in error


@pytest.mark.slow
def test_the_checkpoint_is_named_and_the_best_one_is_taken_after_overfitting(
    tmp_path, run, monkeypatch
):
    run_dir = train_tiny(tmp_path, TEXT, eval_every=1, keep_checkpoints=4)
    assert "step 4, validation loss" in run(run_dir, "--tokens", 1)[2]
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for i, record in enumerate(records):
        record |= {"val_loss": 2.0 + 3 * i, "train_eval_loss": 9.0 - 2 * i}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(checkpoint, "best_step", lambda run_dir: 1)
    for words, part in (
        ((), "step 1, "),
        ((), "later validations are worse; --checkpoint last takes step 4"),
        (("--checkpoint", "last"), "step 4, "),
        (("--checkpoint", "best"), "step 1, "),
        (("--checkpoint", "2"), "step 2, "),
    ):
        code, _, error = run(run_dir, "--tokens", 1, *words)
        assert (code, part in error) == (0, True), error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", "99999999999999999999"), "seed=99999999999999999999"),
        (("--seed", "-1"), "seed=-1"),
        (("--seed", 2**32 + 5), "seed=4294967301"),
        (("--num-samples", 0), "num_samples=0"),
        (("--stop", ""), "stop=''"),
        (("--tokens", -1), "tokens=-1"),
        (("--prompt", "To", "--prompt-file", "p"), "not allowed together"),
        (("--prompt", ""), "prompt=''"),
        (("--prompt", "\udcff"), "must be UTF-8 text"),
        (("--prompts-file", "nowhere"), "No such file"),
        (("--checkpoint", 77), "no checkpoint for step 77"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_and_exit_code_two(runs, run, words, message):
    code, out, error = run(runs[0], *words)
    assert (code, out) == (2, "")
    assert message in error.splitlines()[-1]
    assert len(error.splitlines()) == 1


def test_an_empty_line_is_not_a_prompt(runs, run, tmp_path):
    (tmp_path / "prompts").write_text("To\n\nbe\n")
    code, _, error = run(runs[0], "--prompts-file", tmp_path / "prompts")
    assert (code, "line 2" in error) == (2, True)


def test_train_prints_its_sample_as_it_is(tmp_path):
    """Neither wrapped nor with its tabs expanded, and without a newline in the alphabet."""
    out = io.StringIO()
    (tmp_path / "text.txt").write_text(ONE_LINE)
    config = replace_field(CONFIG, "data", tmp_path / "text.txt")
    config = replace_field(replace_field(config, "sample_tokens", 300), "steps", 1)
    train(config, tmp_path / "out", Console(file=out, width=40))
    lines = out.getvalue().splitlines()
    (position,) = [i for i, line in enumerate(lines) if " sample " in line]
    assert len(lines[position + 1]) == 300
    assert "\t" in lines[position + 1]
