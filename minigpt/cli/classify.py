"""minigpt classify: fine-tune a run as a text classifier."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from minigpt.cli.common import CheckpointName, load_model, make_console
from minigpt.config import ClassifyConfig

if TYPE_CHECKING:
    from rich.console import Console

    from minigpt.tasks.classification import ClassificationScores, LabelledSplit, TextClassifier


@dataclass(frozen=True)
class Classify:
    """Fine-tune a trained model as a text classifier and test it on held-out texts.

    For example:

      $ minigpt classify runs/shakespeare-char-cpu
      $ minigpt classify runs/mine --data reviews.csv --dropout 0.2

    A text that is longer than the model's context is cut off. Without --data, the task is the genre
    of Shakespeare's speeches, split by play. The same command gives the same result.
    """

    run_dir: tyro.conf.Positional[Path]
    """directory of a run of `minigpt train`"""
    data: Path | None = None
    """CSV file with the columns text and label, and optionally split (train, validation or test)"""
    out: Path | None = None
    """directory for the classifier; None: the first unused of RUN_DIR/classify, classify-2, ..."""
    checkpoint: CheckpointName = "last"
    """best: the checkpoint with the lowest validation loss"""
    settings: Annotated[ClassifyConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=ClassifyConfig
    )


def run_classify(command: Classify) -> None:
    """Train a classifier and compare it with two baselines on the test part."""
    from minigpt.run import create_new_dir
    from minigpt.tasks.classification import (
        PretrainedModel,
        fit,
        format_evaluation,
        load_genres,
        print_report,
        read_csv,
        save_report,
    )

    settings, console = command.settings, make_console()
    spec, compiled = load_model(command.run_dir, command.checkpoint)
    data = read_csv(command.data, settings.seed) if command.data else load_genres()
    params = compiled.state.params
    body = PretrainedModel(spec.config.model, spec.vocab_size, spec.tokenizer, params)
    counts = {name: len(part.texts) for name, part in data._asdict().items()}
    console.print(f"texts: {counts}, labels: {', '.join(data.classes())}")
    _warn_of_overlap(data, console)

    folder = create_new_dir(command.out, command.run_dir / "classify")
    classifier = fit(
        body, data, settings, lambda evaluation: console.print(format_evaluation(evaluation))
    )
    classifier.save(folder)  # before the baselines, which could fail
    console.print(f"best macro-F1 at step {classifier.step}")
    scores = _test_scores(classifier, data, settings)
    print_report(scores, console)

    description = {
        "data": command.data and str(command.data),
        "texts": counts,
        "step": classifier.step,
        "settings": dataclasses.asdict(settings),
        "evaluations": classifier.evaluations,
    }
    save_report(scores, description, folder)
    console.print(f"classifier, report.json and confusion.png: {folder}", soft_wrap=True)


def _warn_of_overlap(data: LabelledSplit, console: Console) -> None:
    if overlap := data.count_test_overlap():
        console.print(
            f"{overlap} texts of the test part are also in another part, word for word, so the "
            "test scores may be too high for new texts. Remove them, or define the parts in a "
            "column split."
        )


def _test_scores(
    classifier: TextClassifier, data: LabelledSplit, settings: ClassifyConfig
) -> dict[str, ClassificationScores]:
    """The scores of both baselines and the classifier; all read the same part of each text."""
    from minigpt.tasks.classification import classification_scores, majority, tfidf

    visible = data._replace(
        **{
            name: part._replace(texts=classifier.visible(part.texts))
            for name, part in data._asdict().items()
        }
    )
    predictions = {
        "majority class": majority(visible),
        "tf-idf, logistic regression": tfidf(visible, settings.class_weights),
        "GPT": classifier.predict(data.test.texts),
    }
    return {
        name: classification_scores(data.test.labels, labels, classifier.labels)
        for name, labels in predictions.items()
    }
