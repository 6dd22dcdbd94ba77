"""What the commands are given: their options, and what chooses the defaults."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

try:
    import tyro
except ModuleNotFoundError as missing:
    sys.exit(f"minigpt needs {missing.name}: pip install 'dropout-jax[train]'")

from minigpt.config import PRESETS, ClassifyConfig, Config, DropoutConfig, PresetName

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


def parse(args: list[str]) -> Any:
    """The command that the words are, one of the classes above."""
    if args[:1] == ["train"]:
        return parse_train(args[1:])
    if args[:1] == ["finetune"]:
        return parse_finetune(args[1:])
    commands: Any = Train | Finetune | Sample | Eval | Replay | Uncertainty | Classify
    return tyro.cli(commands, args=args, prog="minigpt")


def parse_train(args: list[str]) -> Train:
    """Parse twice: what chooses the defaults, then everything on top of them."""
    chosen = _chosen(args, "--preset", "--config", "--dropout")
    # A word that is no preset or no number is left to the second parse, which refuses it.
    preset: Any = chosen.preset if chosen.preset in PRESETS else DEFAULT_PRESET
    default = Train(preset=preset, settings=_settings(PRESETS[preset], chosen))
    return tyro.cli(Train, args=args, default=default, prog="minigpt train", config=_TYRO)


def parse_finetune(args: list[str]) -> Finetune:
    """The same, where the parent chooses the defaults."""
    default, prog = Finetune(), "minigpt finetune RUN_DIR"
    if args[:1] not in (["--help"], ["-h"]):
        from minigpt.run.directory import RunSpec
        from minigpt.training import finetune

        if not args or args[0].startswith("-"):
            raise ValueError(
                "finetune needs a trained run as its first word: minigpt finetune RUN_DIR "
                "--data FILE."
            )
        parent = Path(args.pop(0)).resolve()
        chosen = _chosen(args, "--config", "--dropout", "--steps", "--run-dir")
        begun = RunSpec.load(
            finetune.parent_dir(parent, chosen.run_dir and Path(chosen.run_dir))
        ).config
        steps = int(chosen.steps) if (chosen.steps or "").isdecimal() else None
        settings = _settings(finetune.finetune_defaults(begun, parent, steps), chosen)
        default = Finetune(settings=dataclasses.replace(settings, parent=parent))
    command = tyro.cli(Finetune, args=args, default=default, prog=prog, config=_TYRO)
    named, first = command.settings.parent, default.settings.parent
    if named is None or named.resolve() != first:
        raise ValueError(
            f"parent={str(named)!r} is not allowed: it must be the first word, which is "
            f"{str(first)!r}. Leave --parent out."
        )
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
