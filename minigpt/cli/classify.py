"""minigpt classify: fine-tune a run as a text classifier, or label texts with it."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from minigpt.cli.common import import_model, load_model, make_console
from minigpt.config import Checkpoint, ClassifyConfig

if TYPE_CHECKING:
    from rich.console import Console

    from minigpt.run import RunSpec
    from minigpt.tasks.classification import ClassificationScores, LabelledSplit, TextClassifier


@dataclass(frozen=True)
class Classify:
    """Fine-tune a trained model as a text classifier, or label texts with the classifier.

    For example:

      $ minigpt classify runs/shakespeare-char-cpu
      $ minigpt classify runs/mine --data reviews.csv --dropout 0.2
      $ minigpt classify runs/mine --predict new.txt --passes 30
      $ minigpt classify gpt2-folder --data reviews.csv

    It is tested on held-out texts, beside two baselines. A text that is longer than the model's
    context is cut off. Without --data, the task is the genre of Shakespeare's speeches, split by
    play. The same command gives the same result.
    """

    run_dir: tyro.conf.Positional[Path]
    """directory of a run of `minigpt train`, or a Hugging Face GPT-2 as for minigpt import, which
    is imported to runs/NAME-imported"""
    data: Path | None = None
    """file with the columns text and label, and optionally split (train, validation or test): CSV
    with commas, tabs or semicolons, or JSON lines (.jsonl)"""
    predict: Path | None = None
    """label the texts of this file instead of training, with the classifier in RUN_DIR, or else the
    newest of RUN_DIR/classify, classify-2, ...; each line is a text, or a row of a .csv, .tsv or
    .jsonl file with the column text; - reads lines from standard input"""
    passes: int = 0
    """with --predict: passes of Monte Carlo dropout, to add the mutual information; 0: none"""
    json: bool = False
    """with --predict: print a JSON object for each text"""
    out: Path | None = None
    """directory for the classifier; None: the first unused of RUN_DIR/classify, classify-2, ..."""
    checkpoint: Checkpoint = "last"
    """last, best (the lowest validation loss) or a step"""
    settings: Annotated[ClassifyConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=ClassifyConfig
    )


def run_classify(command: Classify) -> None:
    """Train a classifier, or label the texts of a file with it."""
    is_prediction = command.predict is not None
    run_dir = import_model(command.run_dir, quiet=is_prediction)
    command = dataclasses.replace(command, run_dir=run_dir)
    if command.predict is None:
        _refuse_options_of_predict(command)
        _train_and_test(command)
    else:
        _predict(command, command.predict)


def _refuse_options_of_predict(command: Classify) -> None:
    for name in ("passes", "json"):
        if getattr(command, name):
            raise ValueError(
                f"{name}={getattr(command, name)!r} is not allowed without --predict FILE: it "
                "changes how predictions are made. Leave it out, or set --predict."
            )


def _predict(command: Classify, file: Path) -> None:
    """Print the label of each text, its probability, and the beginning of the text."""
    from minigpt.tasks.classification import load, predict_texts, read_texts

    classifier = load(_classifier_dir(command.run_dir))
    classifier = classifier._replace(
        settings=dataclasses.replace(classifier.settings, unknown=command.settings.unknown)
    )
    texts = read_texts(file)
    say = functools.partial(print, file=sys.stderr)
    _print_cut("texts", classifier.count_cut(texts), len(texts), say)
    seed = command.settings.seed
    predictions = predict_texts(classifier, texts, passes=command.passes, seed=seed)
    for text, prediction in zip(texts, predictions, strict=True):
        if command.json:
            print(json.dumps({"text": text, **prediction._asdict()}))
            continue
        information = prediction.information
        more = [] if information is None else [f"{information:.3f}"]
        begin = " ".join(text.split())[:60]
        print(*(prediction.label, f"{prediction.probability:.3f}", *more, begin), sep="\t")


def _classifier_dir(run_dir: Path) -> Path:
    """The folder itself if it is no run, else the newest of its classifiers."""
    from minigpt.checkpoint import list_steps

    if not (run_dir / "config.toml").exists():
        return run_dir
    folders = [path for path in run_dir.glob("classify*") if list_steps(path)]
    if not folders:
        raise ValueError(
            f"{str(run_dir)!r} has no classifier yet. Train one on texts with labels: minigpt "
            f"classify {run_dir} --data FILE."
        )
    return max(folders, key=lambda path: int(path.name.partition("-")[2] or 1))


def _print_cut(name: str, count: int, texts: int, say: Callable[..., object]) -> None:
    """Say how many texts lose their end."""
    if count:
        say(f"{count} of {texts} {name} are longer than the model's context; their end is not read")


def _train_and_test(command: Classify) -> None:
    """Train a classifier and compare it with two baselines on the test part."""
    from minigpt.run import create_new_dir
    from minigpt.tasks.classification import (
        PretrainedModel,
        fit,
        format_evaluation,
        load_genres,
        print_report,
        read_labelled,
        save_report,
    )

    settings, console = command.settings, make_console()
    spec, compiled = load_model(command.run_dir, command.checkpoint)
    data = read_labelled(command.data, settings.seed) if command.data else load_genres()
    params = compiled.state.params
    body = PretrainedModel(spec.config.model, spec.vocab_size, spec.tokenizer, params)
    counts = {name: len(part.texts) for name, part in data._asdict().items()}
    console.print(f"texts: {counts}, labels: {', '.join(data.classes())}")
    _warn_of_overlap(data, console)
    _warn_of_cuts(data, spec, settings.unknown, console)

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


def _warn_of_cuts(data: LabelledSplit, spec: RunSpec, unknown: str, console: Console) -> None:
    from minigpt.tasks.classification import count_cut

    for name, part in data._asdict().items():
        drop_unknown = unknown == "drop"
        block_size = spec.config.model.block_size
        count = count_cut(spec.tokenizer, part.texts, block_size, drop_unknown=drop_unknown)
        _print_cut(f"{name} texts", count, len(part.texts), console.print)


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
