"""minigpt chat: what the model is asked, what is printed, and how it ends."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from chat_models import CHATML, byte_level_tokenizer, save_chat_model
from run_helpers import assert_one_line_error, child_environment, run_command

import minigpt
from minigpt.interop import import_huggingface
from minigpt.tasks import inference
from minigpt.tasks.chat import make_prompt

TOKENIZER = byte_level_tokenizer()
HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Imports with a template and without one."""
    folder = tmp_path_factory.mktemp("models")
    with jax.numpy_dtype_promotion("standard"):
        for name, template in (("chatml", CHATML), ("plain", None)):
            save_chat_model(folder / f"{name}-hf", template, block_size=192)
            import_huggingface(folder / f"{name}-hf", folder / name)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """The prompts and seeds of the answers; a text in `answers` is the next one."""

    class Asked:
        prompts, seeds, answers = [], [], []

    def generate(steps, params, prompts, *, seeds, tokens, **options):
        Asked.prompts.append(TOKENIZER.decode(prompts[0]))
        Asked.seeds += seeds
        text = Asked.answers.pop(0)
        ids = TOKENIZER.encode_marked([text])[0].ids[:tokens]
        for i in range(0, len(ids), 3):
            if text.endswith("^C") and i > 3:
                raise KeyboardInterrupt
            yield np.asarray(ids[None, i : i + 3], np.int32)

    Asked.prompts, Asked.seeds, Asked.answers = [], [], []
    monkeypatch.setattr(inference, "generate_ids", generate)
    return Asked


def chat(capsys, monkeypatch, lines, *words):
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return run_command(capsys, "chat", *words)


def test_each_line_gets_its_answer(runs, asked, capsys, monkeypatch):
    asked.answers = ["Hello\n\\you <|im_end|>\nmore", "4<|im_end|>", "Yes<|endoftext|>no"]
    words = (runs / "chatml", "--system", "Be brief.")
    code, out, err = chat(capsys, monkeypatch, "Hi\n\n2 + 2?\n/reset\nHi", *words)
    assert (code, out) == (0, "Hello\\n\\\\you\n\n4\nYes<|endoftext|>no\n")
    assert "checkpoint of step 0, its chat template" in err
    assert "a new conversation" in err
    begin = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    prompt = "<|im_start|>assistant\n"
    assert asked.prompts == [
        begin + prompt,
        f"{begin}{prompt}Hello\n\\you<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n{prompt}",
        begin + prompt,
    ]
    assert asked.seeds == [0, 1, 0]


def test_the_plain_template(runs, asked, capsys, monkeypatch):
    asked.answers = [" Hello\n you<|endoftext|>", " b<|endoftext|>"]
    code, out, err = chat(capsys, monkeypatch, "Hi\na\n", runs / "plain", "--seed", 2**32 - 1)
    assert (code, out) == (0, "Hello\\n you\nb\n")
    assert "the plain chat template" in err
    assert asked.prompts[1] == (
        "User: Hi\nAssistant: Hello\n you<|endoftext|>\nUser: a\nAssistant:"
    )
    assert asked.seeds == [2**32 - 1, 0]


def test_the_oldest_turns_are_dropped_and_it_is_said_once(runs, asked, capsys, monkeypatch):
    asked.answers = ["a" * 20 + "<|endoftext|>"] * 6
    lines = "".join(f"question {i}\n" for i in range(6))
    words = (runs / "plain", "--tokens", 64, "--system", "Be brief.")
    code, _, err = chat(capsys, monkeypatch, lines, *words)
    assert code == 0
    assert err.count("the oldest turns are forgotten") == 1
    for i, prompt in enumerate(asked.prompts):
        assert prompt.startswith("System: Be brief.\nUser: question")
        assert prompt.endswith(f"User: question {i}\nAssistant:")
        assert len(TOKENIZER.encode_marked([prompt])[0].ids) <= 192 - 64
    assert [prompt.count("User:") for prompt in asked.prompts] == [1, 2, 2, 2, 2, 2]


def test_a_message_that_does_not_fit(runs, asked, capsys, monkeypatch):
    asked.answers = ["a<|endoftext|>"]
    _, _, err = chat(capsys, monkeypatch, "x" * 300 + "\n", runs / "plain")
    assert "longer than the context of 192 tokens; its beginning is not read" in err
    assert "forgotten" not in err


def test_a_prompt_keeps_the_system_message_and_begins_with_the_user(runs):
    model = minigpt.load(runs / "plain")
    turns = [{"role": role, "content": "x" * 40} for role in ("user", "assistant")] * 3
    messages = [{"role": "system", "content": "s"}, *turns[:-1]]
    prompt = make_prompt(model, messages, 10**9)  # half of the block stays free
    assert [message["role"] for message in prompt.messages] == ["system", "user"]
    assert len(prompt.ids) <= 96
    prompt = make_prompt(model, messages, 8)
    assert prompt.messages == [messages[0], *messages[3:]]
    assert messages == [{"role": "system", "content": "s"}, *turns[:-1]]  # unchanged


def test_ctrl_c_ends_an_answer_and_the_second_one_the_program(runs, asked, capsys, monkeypatch):
    asked.answers = ["abcdefghi ^C", "yes<|endoftext|>", "abcdefghi ^C", "abcdefghi ^C", "no"]
    code, out, err = chat(capsys, monkeypatch, "1\n2\n3\n4\n5\n", runs / "plain")
    assert code == 130
    assert out == "abcdef\nyes\nabcdef\nabcdef"
    assert "minigpt: interrupted" in err
    assert "Assistant: abcdef<|endoftext|>\nUser: 2\n" in asked.prompts[1]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_terminal(runs, asked, capsys, monkeypatch):
    """After an interruption the next message is read; there Ctrl-C ends the program."""
    lines = iter(["Hi", "", "\udcff", "again", "/reset", KeyboardInterrupt])

    def read(prompt):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)
    asked.answers = ["abc\ndefghi ^C", "abcdefghi ^C"]
    monkeypatch.setattr(sys, "stdin", Terminal())
    code, out, err = run_command(capsys, "chat", runs / "plain")
    assert (code, out) == (130, "abc\nde\nabcdef\n")
    assert "Ctrl-C ends an answer" in err
    assert "message='\\udcff' is not allowed: it must be UTF-8" in err
    assert "> " in err  # standard output is no terminal


@pytest.mark.slow
def test_the_answers_are_those_of_the_model(runs, capsys, monkeypatch):
    """Also of a folder of Hugging Face, and each line alone after /reset."""
    words = ("--temperature", 0, "--tokens", 6)
    once = chat(capsys, monkeypatch, "Hi\n/reset\nHi\n", runs / "chatml", *words)
    (first, second), model = once[1].splitlines(), minigpt.load(runs / "chatml")
    assert first == second
    ids = make_prompt(model, HELLO, 6).ids
    (piece, *more) = [p.text for p in model.stream([ids], tokens=6, temperature=0)]
    text = "".join([piece, *more]).strip()
    assert text.replace("\\", "\\\\").replace("\n", "\\n") == first
    assert chat(capsys, monkeypatch, "Hi\n", runs / "chatml-hf", *words)[1] == f"{first}\n"


@pytest.mark.parametrize(
    ("words", "lines", "problem"),
    [
        (("--system", " "), "Hi\n", "system=' ' is not allowed"),
        (("--temperature", "-1"), "Hi\n", "temperature=-1.0 is not allowed"),
        (("--seed", "-1"), "Hi\n", "seed=-1 is not allowed"),
        (("--top-p", "2"), "Hi\n", "top_p=2.0 is not allowed"),
    ],
)
def test_mistakes(words, lines, problem, runs, capsys, monkeypatch):
    code, out, err = chat(capsys, monkeypatch, lines, runs / "plain", *words)
    assert (code, out) == (2, "")
    assert problem in err.splitlines()[-1]


def test_no_run(tmp_path, capsys, monkeypatch):
    ended = chat(capsys, monkeypatch, "Hi\n", tmp_path / "none")
    assert_one_line_error(ended, "is not a run directory")


def test_help(capsys):
    code, out, _ = run_command(capsys, "chat", "--help")
    assert code == 0
    assert "--system" in out
    assert "minigpt chat runs/tuned" in out
    assert "  chat " in run_command(capsys, "--help")[1]


@pytest.mark.slow
def test_bytes_that_are_not_utf_8(runs, tmp_path):
    command = [sys.executable, "-m", "minigpt", "chat", str(runs / "plain"), "--tokens", "2"]
    done = subprocess.run(
        command, input=b"\xff\n", capture_output=True, env=child_environment(tmp_path), check=False
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"message='\\udcff' is not allowed: it must be UTF-8 text" in done.stderr


@pytest.mark.slow
def test_ctrl_c_in_a_real_terminal(runs, tmp_path):
    """Once in an answer without end, and once at the prompt."""
    command = [sys.executable, "-m", "minigpt", "chat", str(runs / "plain"), "--tokens", "1000000"]
    parent, child = pty.openpty()
    with subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, env=child_environment(tmp_path)
    ) as process:
        os.close(child)
        read_until(parent, b"> ")
        os.write(parent, b"Hi\n")
        read_until(parent, b"Hi", more=40)
        process.send_signal(signal.SIGINT)
        read_until(parent, b"\n> ")
        time.sleep(2.5)  # longer than main.SECONDS_TO_END
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    os.close(parent)


def read_until(descriptor, text, more=0):
    """Read until `text` and so many bytes after it have come."""
    content = b""
    while len(content.partition(text)[2]) < more or text not in content:
        content += os.read(descriptor, 1024).replace(b"\r\n", b"\n")
    return content


@pytest.mark.slow
def test_a_model_learns_to_answer(tmp_path, capsys, monkeypatch):
    """From conversations to answers: each ends where its turn ends."""
    monkeypatch.chdir(tmp_path)
    pairs = {"red?": "apple", "green?": "leaf\nor pea", "blue?": "sky"}
    lines = [json.dumps({"prompt": q, "completion": a}) for q, a in pairs.items()] * 10
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    words = ("train", "--data", "x.jsonl", "--run-dir", "out", "--tokenizer", "byte")
    sizes = ("--model.n-layer", 1, "--model.n-embd", 32, "--steps", 300, "--sample-tokens", 0)
    assert run_command(capsys, *words, *sizes, "--optim.learning-rate", 1e-2)[0] == 0
    questions = "red?\n/reset\ngreen?\n/reset\nblue?\n"
    words = ("out", "--temperature", 0, "--tokens", 30)
    code, out, _ = chat(capsys, monkeypatch, questions, *words)
    assert (code, out) == (0, "apple\nleaf\\nor pea\nsky\n")
