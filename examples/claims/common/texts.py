"""Other kinds of text than Shakespeare's plays, with the characters of the plays only."""

from pathlib import Path

import numpy as np

from common.data import Text
from minigpt.data import Batch, take_windows

COMMON = Path(__file__).parent
REPOSITORY = COMMON.parents[2]
KNOWN, SHUFFLED = "unseen plays", "shuffled letters"
UNKNOWN = ("Python", "Latin", "shuffled words", SHUFFLED)


def other_language(alphabet: str | None) -> dict[str, str]:
    """This repository's Python and some Latin, without characters outside the alphabet."""
    package = sorted((REPOSITORY / "dropout_jax").rglob("*.py"))
    texts = {
        "Python": "".join(path.read_text(encoding="utf-8") for path in package),
        "Latin": (COMMON / "latin.txt").read_text(encoding="utf-8"),
    }
    if alphabet is None:  # bytes spell any text
        return texts
    known = set(alphabet)
    return {name: "".join(c for c in text if c in known) for name, text in texts.items()}


def control_texts(speeches: list[str], alphabet: str | None) -> dict[str, list[str]]:
    """Pieces of each other language, as many and as long as the speeches; and shuffled letters."""
    rng, pieces = np.random.default_rng(0), {}
    for name, text in other_language(alphabet).items():
        offsets = np.linspace(0, len(text) - max(map(len, speeches)), len(speeches)).astype(int)
        pairs = zip(offsets, speeches, strict=True)
        pieces[name] = [text[offset : offset + len(speech)] for offset, speech in pairs]
    return pieces | {SHUFFLED: ["".join(rng.permutation(list(speech))) for speech in speeches]}


def make_windows(text: Text, rows: int, size: int) -> dict[str, Batch]:
    """Windows of the validation plays and of the unknown texts, evenly spaced over each."""
    rng, tokenizer = np.random.default_rng(0), text.tokenizer
    known = _even_windows(text.validation, rows, size)
    spoken = tokenizer.decode(text.validation[:200_000]).split(" ")
    texts = other_language(tokenizer.alphabet) | {
        "shuffled words": " ".join(rng.permutation(spoken))
    }
    windows = {
        name: _even_windows(tokenizer.encode(each), rows, size) for name, each in texts.items()
    }
    whole = np.concatenate([known.inputs, known.targets[:, -1:]], axis=1)
    letters = rng.permuted(whole, axis=1)
    return {KNOWN: known, **windows, SHUFFLED: Batch(letters[:, :-1], letters[:, 1:])}


def _even_windows(ids, rows: int, size: int) -> Batch:
    return take_windows(ids, np.linspace(0, len(ids) - size - 1, rows), size)
