"""Texts of other kinds than Shakespeare's plays, in the characters that the plays have."""

from pathlib import Path

import numpy as np

from common.data import Text
from minigpt.data import Batch, take_windows

COMMON = Path(__file__).parent
REPOSITORY = COMMON.parents[2]
KNOWN, SHUFFLED = "unseen plays", "shuffled letters"
UNKNOWN = ("Python", "Latin", "shuffled words", SHUFFLED)


def foreign(alphabet: str) -> dict[str, str]:
    """This repository's Python, and some Latin; characters out of the alphabet are left out."""
    package = sorted((REPOSITORY / "dropout_jax").rglob("*.py"))
    texts = {
        "Python": "".join(path.read_text(encoding="utf-8") for path in package),
        "Latin": (COMMON / "latin.txt").read_text(encoding="utf-8"),
    }
    known = set(alphabet)
    return {name: "".join(c for c in text if c in known) for name, text in texts.items()}


def beside(speeches: list[str], alphabet: str) -> dict[str, list[str]]:
    """Of each foreign text as many pieces as speeches, and as long; and the speeches' letters."""
    rng, found = np.random.default_rng(0), {}
    for name, text in foreign(alphabet).items():
        begins = np.linspace(0, len(text) - max(map(len, speeches)), len(speeches)).astype(int)
        pairs = zip(begins, speeches, strict=True)
        found[name] = [text[at : at + len(speech)] for at, speech in pairs]
    return found | {SHUFFLED: ["".join(rng.permutation(list(speech))) for speech in speeches]}


def windowed(text: Text, rows: int, size: int) -> dict[str, Batch]:
    """Windows of the validation's plays and of the unknown texts, spread evenly over each."""
    rng, tokenizer = np.random.default_rng(0), text.tokenizer
    known = _evenly(text.validation, rows, size)
    spoken = tokenizer.decode(text.validation[:200_000]).split(" ")
    texts = foreign(tokenizer.alphabet) | {"shuffled words": " ".join(rng.permutation(spoken))}
    found = {name: _evenly(tokenizer.encode(each), rows, size) for name, each in texts.items()}
    whole = np.concatenate([known.inputs, known.targets[:, -1:]], axis=1)
    letters = rng.permuted(whole, axis=1)
    return {KNOWN: known, **found, SHUFFLED: Batch(letters[:, :-1], letters[:, 1:])}


def _evenly(ids, rows: int, size: int) -> Batch:
    return take_windows(ids, np.linspace(0, len(ids) - size - 1, rows), size)
