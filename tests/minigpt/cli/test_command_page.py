"""The page of the commands is generated, and has every option of every command."""

import pathlib
import re

import command_page
import pytest

from minigpt.cli.arguments import option_types
from minigpt.cli.commands import COMMANDS

PAGE = pathlib.Path(__file__).parents[3] / "docs/commands.md"


def test_the_page_is_the_generated_one():
    assert PAGE.read_text() == command_page.render(), f"run {command_page.__doc__}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_the_commands_section_or_in_one_that_it_links(name):
    sections = {
        re.sub(r"\W+", "-", section.partition("\n")[0].lower()): section
        for section in re.split(r"(?m)^## ", PAGE.read_text())
    }
    own = sections[f"minigpt-{name}"]
    linked = [text for anchor, text in sections.items() if f"(#{anchor})" in own]
    listed = re.findall(r"(?m)^\| `--(\S+)` +\|", own + "".join(linked))
    assert set(option_types(COMMANDS[name])) <= set(listed)
