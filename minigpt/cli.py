"""The command `minigpt`: train, finetune, sample, eval, replay, uncertainty, classify."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

try:
    from rich.console import Console
except ModuleNotFoundError as missing:
    sys.exit(f"minigpt needs {missing.name}: pip install 'dropout-jax[train]'")

from minigpt.data import is_play
from minigpt.options import (
    Begin,
    Classify,
    Eval,
    Finetune,
    Replay,
    Sample,
    Train,
    Uncertainty,
    parse,
)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a bad value is one line and exit code 2."""
    does = {Train: _train, Finetune: _train, Sample: _sample, Eval: _eval, Replay: _replay}
    does |= {Uncertainty: _uncertainty, Classify: _classify}
    try:
        command = parse(sys.argv[1:] if args is None else list(args))
        does[type(command)](command)
    except (ValueError, OSError) as error:
        print(f"minigpt: {error}", file=sys.stderr, flush=True)
        _leave(2)
    except KeyboardInterrupt:
        print("minigpt: interrupted; the run directory keeps its last checkpoint", file=sys.stderr)
        sys.exit(130)


def _leave(code: int) -> None:
    """Exit; of many processes at once, for the others are in the midst of something together."""
    hosts = sys.modules.get(
        "minigpt.distributed.multihost"
    )  # not imported before the arguments were right
    if hosts is not None and not hosts.is_single_process():
        os._exit(code)
    sys.exit(code)


def _console(*, quiet: bool = False) -> Console:
    """Where what it is given is shown as it is: a path's brackets, a label's colons."""
    return Console(highlight=False, markup=False, emoji=False, quiet=quiet)


def _train(command: Begin) -> None:
    from minigpt.distributed import multihost as hosts
    from minigpt.training.resume import choose_run_dir
    from minigpt.training.trainer import train

    hosts.initialize_distributed(command.coordinator, command.num_processes, command.process_id)
    if not hosts.is_single_process() and command.settings.run_dir is None:
        raise ValueError("run_dir=None is not allowed: many processes need one --run-dir.")

    settings, fresh = command.settings, command.resume == "never"
    # Absolute, so that the other commands find them from anywhere.
    data = settings.data if is_play(settings.data) else settings.data and settings.data.resolve()
    parent = settings.parent and settings.parent.resolve()
    settings = dataclasses.replace(settings, data=data, parent=parent)
    name = command.preset if isinstance(command, Train) else f"{parent and parent.name}-finetuned"
    run_dir = settings.run_dir or choose_run_dir(Path("runs"), name, settings, fresh=fresh)
    settings = dataclasses.replace(settings, run_dir=run_dir)
    console = _console(quiet=not hosts.is_main_process())
    train(settings, run_dir, console, fresh=fresh)


def _load(run_dir: Path, which: str):
    """A run and its trained model, ready for evaluation."""
    from minigpt.checkpoint import best_step, restore
    from minigpt.run.directory import RunSpec
    from minigpt.training.train_step import build_train_functions

    run = RunSpec.load(run_dir)
    training = build_train_functions(dataclasses.replace(run.config, mesh="data=1"), run.vocab_size)
    step = best_step(run_dir) if which == "best" else None
    state, _ = restore(run_dir, training.state, step)
    return run, training._replace(state=training.put(state))


def _sample(command: Sample) -> None:
    from minigpt.model import generate

    run, training = _load(command.run_dir, command.checkpoint)
    prompt = "\n" if command.prompt is None else command.prompt
    ids = generate(
        training.logits,
        training.state.params,
        run.tokenizer.encode(prompt),
        tokens=command.tokens,
        block_size=run.config.model.block_size,
        vocab_size=run.tokenizer.vocab_size,
        temperature=command.temperature,
        top_k=command.top_k,
        top_p=command.top_p,
        seed=command.seed,
    )
    print(prompt + run.tokenizer.decode(list(ids)))


def _eval(command: Eval) -> None:
    from minigpt.data import load_dataset
    from minigpt.training.evaluate import evaluate

    run, training = _load(command.run_dir, command.checkpoint)
    tokens = load_dataset(run.config.data, run.config.tokenizer, run.given_tokenizer)
    run.require_same_text(tokens.sha256, tokens.tokenizer)
    result = evaluate(
        training.eval_step,
        training.state.params,
        tokens.validation,
        tokens.validation_characters,
        batch_size=run.config.batch_size,
        block_size=run.config.model.block_size,
    )
    if command.json:
        print(json.dumps(result._asdict()))
        return
    print(
        f"validation loss {result.loss:.4f} nats a token, perplexity {result.perplexity:.3f}, "
        f"{result.bits_per_character:.4f} bits a character, over {result.tokens:,} tokens"
    )


def _replay(command: Replay) -> None:
    from minigpt.tasks.replay import print_replay, replay, to_json

    def warn(told: str) -> None:
        print(f"minigpt: {told}", file=sys.stderr)

    result = replay(command.run_dir, command.step, warn)
    if command.json:
        print(json.dumps(to_json(result)))
        return
    print_replay(result, _console())


def _uncertainty(command: Uncertainty) -> None:
    from minigpt.atomic_write import write_atomic
    from minigpt.tasks.uncertainty import render as coloured
    from minigpt.tasks.uncertainty.estimate import text_uncertainty

    if (command.text is None) == (command.file is None):
        raise ValueError("text: give either --text or --file, and one of them.")
    text = _read_text(command.file) if command.file else command.text or ""
    run, training = _load(command.run_dir, command.checkpoint)
    options = {"dropout": command.dropout, "passes": command.passes, "seed": command.seed}
    found = text_uncertainty(run, training.state.params, text, **options)._asdict()
    top = coloured.color_scale_max(found[command.measure], command.top)
    if command.html:
        page = coloured.to_html(text, found, command.measure, top)
        write_atomic(command.html, page.encode())
    if command.json:
        numbers = {name: [None if x != x else x for x in each] for name, each in found.items()}
        print(json.dumps({"text": text} | numbers))
        return
    coloured.print_colored(_console(), text, found[command.measure], command.measure, top)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"file={str(path)!r} is not allowed: it must be UTF-8 text ({error})."
        ) from None


def _classify(command: Classify) -> None:
    from minigpt.run.directory import create_new_dir
    from minigpt.tasks.classification import baselines, report
    from minigpt.tasks.classification.data import LabelledSplit, read_csv
    from minigpt.tasks.classification.metrics import classification_scores
    from minigpt.tasks.classification.shakespeare_genres import load_genres
    from minigpt.tasks.classification.train import PretrainedModel, fit

    settings, console = command.settings, _console()
    run, training = _load(command.run_dir, command.checkpoint)
    data = read_csv(command.data, settings.seed) if command.data else load_genres()
    body = PretrainedModel(run.config.model, run.vocab_size, run.tokenizer, training.state.params)
    counts = {name: len(part.texts) for name, part in data._asdict().items()}
    console.print(f"texts: {counts}, labels: {', '.join(data.classes())}")
    if leaked := data.leaked():
        console.print(
            f"{leaked} of the test part's texts are in another part too, word for word, so the "
            "test says less of new texts. Remove them, or name the parts in a column split."
        )

    folder = create_new_dir(command.out, command.run_dir / "classify")
    trained = fit(body, data, settings, lambda look: console.print(report.format_evaluation(look)))
    trained.save(folder)  # before all that could fail
    console.print(f"the best parameters are those of step {trained.step}")
    cut = LabelledSplit(*(part._replace(texts=trained.visible(part.texts)) for part in data))
    predicted = {
        "majority class": baselines.majority(cut),
        "tf-idf, logistic regression": baselines.tfidf(cut, settings.class_weights),
        "GPT": trained.predict(data.test.texts),
    }
    found = {
        name: classification_scores(data.test.labels, labels, trained.labels)
        for name, labels in predicted.items()
    }
    report.print_report(found, console)

    about = {"data": command.data and str(command.data), "texts": counts, "step": trained.step}
    about |= {"settings": dataclasses.asdict(settings), "looks": trained.looks}
    report.save_report(found, about, folder)
    console.print(f"classifier, report.json and confusion.png: {folder}", soft_wrap=True)
