"""minigpt classify: fine-tune a run as a classifier of texts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from minigpt.cli.common import WhichCheckpoint, load_model, make_console
from minigpt.config import ClassifyConfig

if TYPE_CHECKING:
    from minigpt.tasks.classification import ClassificationScores, LabelledSplit, TextClassifier


@dataclass(frozen=True)
class Classify:
    """Fine-tune a trained model as a classifier, and report on texts that it has not seen.

    Of a text longer than the model's context the beginning is taken. Without --data the task is the
    genre of Shakespeare's speeches, split by play. The same command gives the same result.
    """

    run_dir: tyro.conf.Positional[Path]
    """the directory that `minigpt train` wrote"""
    data: Path | None = None
    """a CSV file with the columns text and label, and perhaps split: train, validation or test"""
    out: Path | None = None
    """where the classifier is written; unset takes the first free RUN_DIR/classify[-N]"""
    checkpoint: WhichCheckpoint = "last"
    """best is that of the lowest validation loss"""
    settings: Annotated[ClassifyConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=ClassifyConfig
    )


def run_classify(command: Classify) -> None:
    """Train a classifier, and compare it with two baselines on the test part."""
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
    if overlap := data.count_test_overlap():
        console.print(
            f"{overlap} of the test part's texts are in another part too, word for word, so the "
            "test says less of new texts. Remove them, or name the parts in a column split."
        )

    folder = create_new_dir(command.out, command.run_dir / "classify")
    classifier = fit(body, data, settings, lambda each: console.print(format_evaluation(each)))
    classifier.save(folder)  # before the baselines, which could fail
    console.print(f"the best parameters are those of step {classifier.step}")
    scores = _test_scores(classifier, data, settings)
    print_report(scores, console)

    about = {"data": command.data and str(command.data), "texts": counts, "step": classifier.step}
    about |= {"settings": dataclasses.asdict(settings), "evaluations": classifier.evaluations}
    save_report(scores, about, folder)
    console.print(f"classifier, report.json and confusion.png: {folder}", soft_wrap=True)


def _test_scores(
    classifier: TextClassifier, data: LabelledSplit, settings: ClassifyConfig
) -> dict[str, ClassificationScores]:
    """The scores of both baselines and the classifier, which all see the same part of a text."""
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
