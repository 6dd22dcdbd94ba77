"""minigpt uncertainty: color a text by the uncertainty of a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from minigpt.cli.common import load_model, make_console
from minigpt.config import Checkpoint
from minigpt.data import normalize_text, read_text


@dataclass(frozen=True)
class Uncertainty:
    """Color a text by the uncertainty of a model about every character, by Monte Carlo dropout.

    For example:

      $ minigpt uncertainty runs/shakespeare-char-cpu --text "To be, or not to be" --html to-be.html
    """

    run_dir: tyro.conf.Positional[Path]
    """directory of a run of `minigpt train`"""
    text: str | None = None
    """the text; or set --file"""
    file: Path | None = None
    """UTF-8 text file; or set --text"""
    measure: Literal["information", "entropy", "surprise"] = "information"
    """mutual information, entropy of the mean prediction, or -log of the character's probability"""
    dropout: float | None = None
    """one rate for nanoGPT's four dropout sites; None: the rates of training"""
    passes: int = 30
    """number of forward passes with different masks"""
    top: float | None = None
    """value of the strongest color in nats, to compare texts; None: the largest in the text"""
    html: Path | None = None
    """also write one HTML file"""
    json: bool = False
    """print one JSON object instead of the text"""
    seed: int = 0
    """the same seed gives the same numbers"""
    checkpoint: Checkpoint = "last"
    """last, best (the lowest validation loss) or a step"""


def run_uncertainty(command: Uncertainty) -> None:
    """Print the text in color or as JSON, and write the HTML file if one is requested."""
    from minigpt.atomic_write import require_writable, write_atomic
    from minigpt.tasks.uncertainty import (
        color_scale_max,
        print_colored,
        require_top,
        text_uncertainty,
        to_html,
    )

    require_top(command.top)
    if command.html:
        require_writable("html", command.html)
    if (command.text is None) == (command.file is None):
        raise ValueError(
            f"text={command.text!r}, file={command.file and str(command.file)!r} is not allowed: "
            "set either --text or --file."
        )
    if command.file:
        text = read_text(command.file, "file")
    else:
        text = normalize_text(command.text or "", "text")
    spec, compiled = load_model(command.run_dir, command.checkpoint)
    measures = text_uncertainty(
        spec,
        compiled.state.params,
        text,
        dropout=command.dropout,
        passes=command.passes,
        seed=command.seed,
    )._asdict()
    values = measures[command.measure]
    top = color_scale_max(values, command.top)
    if command.html:
        write_atomic(command.html, to_html(text, measures, command.measure, top).encode())
    if command.json:
        lists = {name: [None if x != x else x for x in array] for name, array in measures.items()}
        print(json.dumps({"text": text} | lists))
        return
    print_colored(make_console(), text, values, command.measure, top)
