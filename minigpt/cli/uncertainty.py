"""minigpt uncertainty: color a text by how uncertain a model is of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from minigpt.cli.common import WhichCheckpoint, load_model, make_console


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
    checkpoint: WhichCheckpoint = "last"
    """best is that of the lowest validation loss"""


def run_uncertainty(command: Uncertainty) -> None:
    """Print the text in color or as JSON, and write the HTML file that was asked for."""
    from minigpt.atomic_write import write_atomic
    from minigpt.tasks.uncertainty import (
        color_scale_max,
        print_colored,
        text_uncertainty,
        to_html,
    )

    if (command.text is None) == (command.file is None):
        raise ValueError("text: give either --text or --file, and one of them.")
    text = _read_text(command.file) if command.file else command.text or ""
    spec, compiled = load_model(command.run_dir, command.checkpoint)
    options = {"dropout": command.dropout, "passes": command.passes, "seed": command.seed}
    measures = text_uncertainty(spec, compiled.state.params, text, **options)._asdict()
    values = measures[command.measure]
    top = color_scale_max(values, command.top)
    if command.html:
        write_atomic(command.html, to_html(text, measures, command.measure, top).encode())
    if command.json:
        numbers = {name: [None if x != x else x for x in each] for name, each in measures.items()}
        print(json.dumps({"text": text} | numbers))
        return
    print_colored(make_console(), text, values, command.measure, top)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"file={str(path)!r} is not allowed: it must be UTF-8 text ({error})."
        ) from None
