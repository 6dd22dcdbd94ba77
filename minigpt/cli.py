"""The command `minigpt`: train, finetune, sample, eval, replay, uncertainty, classify."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

try:
    import tyro
    from rich.console import Console
except ModuleNotFoundError as missing:
    sys.exit(f"minigpt needs {missing.name}: pip install 'dropout-jax[train]'")

from minigpt.config import PRESETS, ClassifyConfig, Config, DropoutConfig, PresetName
from minigpt.corpus import is_play

DEFAULT_PRESET: PresetName = "shakespeare-char-cpu"
_TYRO: Any = (tyro.conf.FlagConversionOff,)


@dataclass(frozen=True)
class Begin:
    """What every command that trains is given."""

    config: Path | None = None
    """a TOML file with any of the options below, such as a run's config.toml"""
    dropout: float | None = None
    """one rate for the four sites nanoGPT drops at: embed, attn-weights, attn-out, mlp-out"""
    resume: Literal["auto", "never"] = "auto"
    """auto goes on with an unfinished run of the same settings; never begins a new one"""
    coordinator: str | None = None
    """HOST:PORT of process 0 of many, or auto on Slurm, Open MPI, Cloud TPU and Kubernetes"""
    num_processes: int | None = None
    """how many processes there are"""
    process_id: int | None = None
    """which of them this is, from 0"""
    settings: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


@dataclass(frozen=True)
class Train(Begin):
    """Train a GPT. Later wins: --preset, --config, --dropout, then single options."""

    preset: PresetName = DEFAULT_PRESET
    """where the defaults come from"""


@dataclass(frozen=True)
class Finetune(Begin):
    """Go on from the weights of RUN_DIR with other text, in a run of its own.

    The defaults are RUN_DIR's settings with a tenth of its learning rate, a quarter of its steps,
    ten validations and --patience 3. Later wins: these, --config, --dropout, then single options.
    """


@dataclass(frozen=True)
class Sample:
    """Write text with a trained model."""

    run_dir: tyro.conf.Positional[Path]
    """the directory that `minigpt train` wrote"""
    prompt: str | None = None
    """the text to go on from; unset begins with a new line"""
    tokens: int = 500
    temperature: float = 1.0
    """0 takes the likeliest token"""
    top_k: int | None = None
    """draw from the k likeliest tokens only"""
    top_p: float | None = None
    """draw from the fewest tokens that hold this probability"""
    seed: int = 0
    checkpoint: Literal["last", "best"] = "last"
    """best is that of the lowest validation loss"""


@dataclass(frozen=True)
class Eval:
    """Measure a trained model on the whole validation text."""

    run_dir: tyro.conf.Positional[Path]
    """the directory that `minigpt train` wrote"""
    json: bool = False
    """print one JSON object"""
    checkpoint: Literal["last", "best"] = "last"
    """best is that of the lowest validation loss"""


@dataclass(frozen=True)
class Replay:
    """Make one step of a run again, with its very batch and masks, and look at every site."""

    run_dir: tyro.conf.Positional[Path]
    """the directory that `minigpt train` wrote"""
    step: int
    """counted from 1, as in metrics.jsonl"""
    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class Uncertainty:
    """Colour a text by how unsure a model is of every character, by Monte Carlo dropout."""

    run_dir: tyro.conf.Positional[Path]
    """the directory that `minigpt train` wrote"""
    text: str | None = None
    """the text, or name a --file"""
    file: Path | None = None
    """a UTF-8 text"""
    measure: Literal["information", "entropy", "surprise"] = "information"
    """what the model does not know (mutual information); with the text's own chance (entropy of the
    mean prediction); or -log of the probability of the character that stands there"""
    dropout: float | None = None
    """one rate for the passes at nanoGPT's four sites; unset takes the rates of the training"""
    passes: int = 30
    top: float | None = None
    """nats of the strongest colour, to compare texts; unset takes the largest in the text"""
    html: Path | None = None
    """write one HTML file too"""
    json: bool = False
    """print one JSON object instead"""
    seed: int = 0
    checkpoint: Literal["last", "best"] = "last"
    """best is that of the lowest validation loss"""


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
    checkpoint: Literal["last", "best"] = "last"
    """best is that of the lowest validation loss"""
    settings: Annotated[ClassifyConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=ClassifyConfig
    )


def main(args: list[str] | None = None) -> None:
    """Run the command line; a bad value is one line and exit code 2."""
    args = sys.argv[1:] if args is None else args
    try:
        if args[:1] in (["train"], ["finetune"]):
            parse = {"train": _parse_train, "finetune": _parse_finetune}[args[0]]
            _train(parse(args[1:]))
            return
        commands: Any = Train | Finetune | Sample | Eval | Replay | Uncertainty | Classify
        command = tyro.cli(commands, args=args, prog="minigpt")
        run = {Sample: _sample, Eval: _eval, Replay: _replay, Uncertainty: _uncertainty}
        run |= {Classify: _classify}
        run[type(command)](command)
    except (ValueError, OSError) as error:
        print(f"minigpt: {error}", file=sys.stderr, flush=True)
        _leave(2)
    except KeyboardInterrupt:
        print("minigpt: interrupted; the run directory keeps its last checkpoint", file=sys.stderr)
        sys.exit(130)


def _leave(code: int) -> None:
    """Exit; of many processes at once, for the others are in the midst of something together."""
    hosts = sys.modules.get("minigpt.hosts")  # not imported before the arguments were right
    if hosts is not None and not hosts.alone():
        os._exit(code)
    sys.exit(code)


def _parse_train(args: list[str]) -> Train:
    """Parse twice: what chooses the defaults, then everything on top of them."""
    chosen = _chosen(args, "--preset", "--config", "--dropout")
    # A word that is no preset or no number is left to the second parse, which refuses it.
    preset: Any = chosen.preset if chosen.preset in PRESETS else DEFAULT_PRESET
    default = Train(preset=preset, settings=_settings(PRESETS[preset], chosen))
    return tyro.cli(Train, args=args, default=default, prog="minigpt train", config=_TYRO)


def _parse_finetune(args: list[str]) -> Finetune:
    """The same, where the parent chooses the defaults."""
    default, prog = Finetune(), "minigpt finetune RUN_DIR"
    if args[:1] not in (["--help"], ["-h"]):
        from minigpt import finetune
        from minigpt.rundir import Run

        if not args or args[0].startswith("-"):
            raise ValueError(
                "finetune needs a trained run as its first word: minigpt finetune RUN_DIR "
                "--data FILE."
            )
        parent = Path(args.pop(0)).resolve()
        chosen = _chosen(args, "--config", "--dropout", "--steps", "--run-dir")
        begun = Run.load(finetune.place(parent, chosen.run_dir and Path(chosen.run_dir))).config
        steps = int(chosen.steps) if (chosen.steps or "").isdecimal() else None
        settings = _settings(finetune.defaults(begun, parent, steps), chosen)
        default = Finetune(settings=dataclasses.replace(settings, parent=parent))
    command = tyro.cli(Finetune, args=args, default=default, prog=prog, config=_TYRO)
    if command.settings.data is None:
        raise ValueError(
            "data=None is not allowed: it must be the text to go on with, --data FILE or one play, "
            "such as --data play:the-tempest."
        )
    return command


def _chosen(args: list[str], *options: str) -> argparse.Namespace:
    """What chooses the defaults."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in options:
        first.add_argument(option, nargs="?")
    return first.parse_known_args(args)[0]


def _settings(default: Config, chosen: argparse.Namespace) -> Config:
    """The defaults with a file's settings and one rate on top of them."""
    settings = _read_toml(Path(chosen.config), default) if chosen.config else default
    if (rate := _number(chosen.dropout)) is None:
        return settings
    model = dataclasses.replace(settings.model, dropout=DropoutConfig.uniform(rate))
    return dataclasses.replace(settings, model=model)


def _read_toml(path: Path, default: Config) -> Config:
    """A file's settings on top of the defaults, checked as if given as options.

    The run directory is not read: a run's config.toml names its own, which is taken.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"config={str(path)!r} cannot be read: {error}.") from None
    tables.pop("run_dir", None)
    options = [word for name, value in _flat(tables) for word in (f"--{name}", str(value))]
    return tyro.cli(
        Config, args=options, default=default, prog=f"minigpt train --config {path}", config=_TYRO
    )


def _number(word: str | None) -> float | None:
    try:
        return float(word) if word is not None else None
    except ValueError:
        return None


def _flat(tables: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in tables.items():
        is_table = isinstance(value, dict)
        pairs += _flat(value, f"{prefix}{name}.") if is_table else [(prefix + name, value)]
    return pairs


def _train(command: Begin) -> None:
    from minigpt import hosts
    from minigpt.loop import train
    from minigpt.resume import choose

    hosts.meet(command.coordinator, command.num_processes, command.process_id)
    if not hosts.alone() and command.settings.run_dir is None:
        raise ValueError("run_dir=None is not allowed: many processes need one --run-dir.")

    settings, fresh = command.settings, command.resume == "never"
    # Absolute, so that the other commands find them from anywhere.
    data = settings.data if is_play(settings.data) else settings.data and settings.data.resolve()
    parent = settings.parent and settings.parent.resolve()
    settings = dataclasses.replace(settings, data=data, parent=parent)
    name = command.preset if isinstance(command, Train) else f"{parent and parent.name}-finetuned"
    run_dir = settings.run_dir or choose(Path("runs"), name, settings, fresh=fresh)
    settings = dataclasses.replace(settings, run_dir=run_dir)
    console = Console(highlight=False, quiet=not hosts.is_first())
    train(settings, run_dir, console, fresh=fresh)


def _load(run_dir: Path, which: str):
    """A run and its trained model, ready for evaluation."""
    from minigpt import checkpoint
    from minigpt.rundir import Run
    from minigpt.train_step import start

    run = Run.load(run_dir)
    training = start(dataclasses.replace(run.config, mesh="data=1"), run.vocab_size)
    step = checkpoint.best_step(run_dir) if which == "best" else None
    state, _ = checkpoint.restore(run_dir, training.state, step)
    return run, training._replace(state=training.put(state))


def _sample(command: Sample) -> None:
    from minigpt.sample import generate

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
    from minigpt.evaluate import evaluate
    from minigpt.tokens import load_tokens

    run, training = _load(command.run_dir, command.checkpoint)
    tokens = load_tokens(run.config.data, run.config.tokenizer, run.given_tokenizer)
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
    from minigpt.replay import plain, replay, show

    def warn(told: str) -> None:
        print(f"minigpt: {told}", file=sys.stderr)

    result = replay(command.run_dir, command.step, warn)
    if command.json:
        print(json.dumps(plain(result)))
        return
    show(result, Console(highlight=False))


def _uncertainty(command: Uncertainty) -> None:
    from minigpt import coloured
    from minigpt.files import replace
    from minigpt.uncertainty import text_uncertainty

    if (command.text is None) == (command.file is None):
        raise ValueError("text: give either --text or --file, and one of them.")
    text = _read_text(command.file) if command.file else command.text or ""
    run, training = _load(command.run_dir, command.checkpoint)
    options = {"dropout": command.dropout, "passes": command.passes, "seed": command.seed}
    found = text_uncertainty(run, training.state.params, text, **options)._asdict()
    top = coloured.top_of(found[command.measure], command.top)
    if command.html:
        page = coloured.page(text, found, command.measure, top)
        replace(command.html, page.encode())
    if command.json:
        numbers = {name: [None if x != x else x for x in each] for name, each in found.items()}
        print(json.dumps({"text": text} | numbers))
        return
    coloured.show(Console(highlight=False), text, found[command.measure], command.measure, top)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"file={str(path)!r} is not allowed: it must be UTF-8 text ({error})."
        ) from None


def _classify(command: Classify) -> None:
    from minigpt import baselines, report
    from minigpt.classify import Body, fit
    from minigpt.labelled import Split, read_csv
    from minigpt.rundir import new_folder
    from minigpt.scores import scores
    from minigpt.speeches import genres

    settings, console = command.settings, Console(highlight=False)
    run, training = _load(command.run_dir, command.checkpoint)
    data = read_csv(command.data, settings.seed) if command.data else genres()
    body = Body(run.config.model, run.vocab_size, run.tokenizer, training.state.params)
    counts = {name: len(part.texts) for name, part in data._asdict().items()}
    console.print(f"texts: {counts}, labels: {', '.join(data.classes())}", markup=False)

    folder = new_folder(command.out, command.run_dir / "classify")
    trained = fit(body, data, settings, lambda look: console.print(report.line(look)))
    console.print(f"the best parameters are those of step {trained.step}")
    cut = Split(*(part._replace(texts=trained.visible(part.texts)) for part in data))
    predicted = {
        "majority class": baselines.majority(cut),
        "tf-idf, logistic regression": baselines.tfidf(cut, settings.class_weights),
        "GPT": trained.predict(data.test.texts),
    }
    found = {
        name: scores(data.test.labels, labels, trained.labels) for name, labels in predicted.items()
    }
    report.show(found, console)

    trained.save(folder)
    about = {"data": command.data and str(command.data), "texts": counts, "step": trained.step}
    about |= {"settings": dataclasses.asdict(settings), "looks": trained.looks}
    report.save(found, about, folder)
    console.print(f"classifier, report.json and confusion.png: {folder}", soft_wrap=True)
