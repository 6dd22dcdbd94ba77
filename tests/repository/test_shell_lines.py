"""The shell lines of the pages name commands, options, files and targets that exist."""

import pathlib
import re
import shlex

import pytest

from minigpt.cli.commands import COMMANDS, parse

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGETS = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
BLOCK = re.compile(r"(?ms)^```sh\n(.*?)^```")
OTHER_PROGRAMS = {".", "cd", "echo", "export", "gcloud", "git", "pip", "pre-commit"}


def shell_lines(text):
    """The lines of the blocks marked `sh`, with lines that go on joined."""
    for block in BLOCK.findall(text):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())


def commands_of(line):
    """The words of each command of a line: those behind a pipe, `&&` and srun too."""
    words = shlex.split(line, comments=True)
    command = []
    for word in [*words, "&&"]:
        if word in ("|", "&&", "&", ";"):
            if command:
                yield command[1:] if command[0] == "srun" else command
            command = []
        elif command or not re.match(r"[A-Z_]+=", word):  # a variable before the command
            command.append(word.removesuffix(";"))


def check_command(command):
    program, *words = command
    name = program.removeprefix(".venv/bin/")
    if name == "minigpt":
        if not {"COMMAND", "--help", "--help-all"} & set(words):
            assert type(parse(words)) in COMMANDS.values()
    elif name == "make":
        assert set(words) - {word for word in words if "=" in word} <= TARGETS, words
    elif name in ("python", "python3", "pytest", "ruff"):
        files = [word.partition("::")[0] for word in words if re.search(r"\.(py|md)(::|$)", word)]
        missing = [file for file in files if not (ROOT / file).exists()]
        assert not missing
    else:
        assert name in OTHER_PROGRAMS, f"{name}: add it to OTHER_PROGRAMS if it is a program"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_shell_line_is_a_command_that_exists(page):
    for line in shell_lines(page.read_text()):
        for command in commands_of(line):
            check_command(command)


@pytest.mark.parametrize(
    "line",
    [
        "minigpt train --dropuot 0.1",
        "make trian",
        "python examples/no.py",
        "X=1 make tset",
        "minig",
    ],
)
def test_a_wrong_line_is_noticed(line):
    with pytest.raises((AssertionError, ValueError)):
        [check_command(command) for command in commands_of(line)]
