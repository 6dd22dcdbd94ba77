"""What labels are worth: scores by hand, their table and picture, the baselines."""

import io
import json
import warnings

import pytest
from rich.console import Console
from tiny import DATA

from minigpt.tasks.classification import baselines, report
from minigpt.tasks.classification import metrics as scores
from minigpt.tasks.classification.data import LabelledSplit, LabelledTexts


def test_scores_by_hand():
    result = scores.classification_scores(list("aaabbc"), list("aabbba"), ("a", "b", "c"))
    assert result.confusion == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.classes["a"] == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3}
    )
    assert result.classes["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert result.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 3)


def test_a_label_that_a_part_lacks_costs_nothing():
    """All answers are right, so the F1 of those labels that there are is 1."""
    result = scores.classification_scores(list("aab"), list("aab"), ("a", "b", "c"))
    assert (result.accuracy, result.macro_f1) == (1, 1)
    supports = [each["support"] for each in result.classes.values()]
    assert json.dumps(supports) == "[2, 1, 0]"
    assert scores.classification_scores(
        list("aab"), list("aac"), ("a", "b", "c")
    ).macro_f1 == pytest.approx(1 / 3)


def test_labels_are_shown_as_they_are():
    """Not as rich's markup or emoji."""
    labels = ("[red]", ":heart:")
    result = scores.classification_scores(list(labels), list(labels), labels)
    console = Console(file=io.StringIO(), width=200, record=True)
    report.print_report({"GPT": result}, console)
    printed = console.export_text()
    assert all(printed.count(label) == 2 for label in labels)


def test_a_label_that_the_font_lacks_is_drawn_without_a_word(tmp_path):
    result = scores.classification_scores(["\U00020000", "b"], ["b", "b"], ("\U00020000", "b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.plot_confusion(result, tmp_path / "x.png", "title")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_baselines():
    assert baselines.majority(DATA._replace(train=LabelledTexts(["a"] * 3, ["x", "y", "y"]))) == (
        ["y"] * 24
    )
    spaced = LabelledSplit(
        *(LabelledTexts([" ".join(text) for text in p.texts], p.labels) for p in DATA)
    )
    assert baselines.tfidf(spaced) == DATA.test.labels
