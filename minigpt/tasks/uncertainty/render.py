"""A text coloured by a number for every character: in the terminal, and as one HTML file."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

LEVELS = 10
# Pale yellow to red, for level 1 to 9; black is legible on each, and level 0 has no colour.
_COLOURS = (
    *("#fff3c4", "#ffe699", "#ffd875", "#ffc75a", "#ffb347"),
    *("#ff9c3f", "#ff843c", "#fb6a3a", "#f2503a"),
)


def color_levels(values: np.ndarray, top: float) -> np.ndarray:
    """0 to 9: tenths of `top`, and 9 for what is above it; -1 for NaN, which has no number."""
    tenths = np.clip(np.nan_to_num(values) / top * LEVELS, 0, LEVELS - 1).astype(int)
    return np.where(np.isnan(values), -1, tenths)


def color_scale_max(values: np.ndarray, top: float | None) -> float:
    """The number that gets the strongest colour: the one asked for, or the text's largest."""
    if top is not None and not 0 < top < float("inf"):
        raise ValueError(f"top={top!r} is not allowed: it must be positive and finite.")
    largest = np.nanmax(values, initial=0.0)
    return top if top is not None else float(largest) or 1.0


def print_colored(console: Console, text: str, values: np.ndarray, name: str, top: float) -> None:
    """Print the text on coloured ground; without colours, each line with its levels below it."""
    found = color_levels(values, top)
    coloured = console.color_system is not None and not console.no_color
    console.print(_legend(name, top, coloured), soft_wrap=True)
    console.print()
    if coloured:
        console.print(_on_colours(text, found), soft_wrap=True)
        return
    for begin, end in _lines(text, console.width):
        console.print(Text(_visible(text[begin:end])), soft_wrap=True)
        console.print(Text(_digits(text[begin:end], found[begin:end])), soft_wrap=True)


def _legend(name: str, top: float, coloured: bool) -> Text:
    legend = Text(f"{name}, nats: 0 ")
    for level in range(LEVELS):
        legend.append(f" {level} ", _style(level) if coloured else "")
    legend.append(f" {top:.3g} or more")
    if not coloured:
        legend.append("; . is the first, which nothing comes before")
    return legend


def _style(level: int) -> Style | str:
    return Style(color="#000000", bgcolor=_COLOURS[level - 1]) if level > 0 else ""


def _on_colours(text: str, found: np.ndarray) -> Text:
    """A newline's colour is on a mark before it."""
    line = Text()
    for character, level in zip(text, found, strict=True):
        shown = "↵\n" if character == "\n" and level > 0 else character
        line.append(shown[0] if shown == "\n" else _visible(shown[0]), _style(level))
        line.append(shown[1:])
    return line


def _visible(text: str) -> str:
    """What a terminal would take for a command is shown as a mark."""
    shown = text.replace("\n", "↵").replace("\t", "→")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)


def _lines(text: str, width: int) -> list[tuple[int, int]]:
    """Where lines begin and end, each with its newline, cut to the width."""
    lines, begin, room = [], 0, width
    for i, character in enumerate(text):
        room -= max(cell_len(_visible(character)), 1)
        if room < 0:
            lines.append((begin, i))
            begin, room = i, width - max(cell_len(_visible(character)), 1)
        if character == "\n":
            lines.append((begin, i + 1))
            begin, room = i + 1, width
    return [*lines, (begin, len(text))] if begin < len(text) else lines


def _digits(text: str, found: np.ndarray) -> str:
    """A level for every character, as wide as it."""
    pairs = zip(_visible(text), found, strict=True)
    return "".join(("." if x < 0 else str(x)).ljust(cell_len(c)) for c, x in pairs)


def to_html(text: str, about: dict[str, Sequence[float]], name: str, top: float) -> str:
    """One HTML file that needs no other, for light and dark; titles hold every number in `about`.

    The colours are those of `about[name]`. The element with the id "text" holds the text.
    """
    found = color_levels(np.asarray(about[name]), top)
    spans = (
        _span(character, level, {each: numbers[i] for each, numbers in about.items()})
        for i, (character, level) in enumerate(zip(text, found, strict=True))
    )
    legend = "".join(f'<span class="l{level}"> {level} </span>' for level in range(LEVELS))
    colours = "\n".join(
        f".l{level} {{ background: {colour}; color: #000 }}"
        for level, colour in enumerate(_COLOURS, start=1)
    )
    return _PAGE.format(
        name=html.escape(name),
        top=f"{top:.3g}",
        legend=legend,
        colours=colours,
        text="".join(spans),
    )


def _span(character: str, level: int, numbers: dict[str, float]) -> str:
    known = [f"{each} {x:.3f}" for each, x in numbers.items() if not np.isnan(x)]
    about = ", ".join(known) or "nothing comes before it"
    title = f"{json.dumps(character, ensure_ascii=False)}: {about}"
    shown = html.escape(character).replace("\r", "&#13;")
    mark = f' class="l{level}"' if level > 0 else ""
    return f'<span{mark} title="{html.escape(title)}">{shown}</span>'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Uncertainty of a text</title>
<style>
:root {{ color-scheme: light dark }}
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font-family: sans-serif }}
pre {{ font: 1rem/1.6 monospace; white-space: pre-wrap; overflow-wrap: anywhere }}
.legend span {{ font-family: monospace; white-space: pre }}
{colours}
</style>
</head>
<body>
<p class="legend">{name}, nats: 0 {legend} {top} or more. A character's numbers are in its title:
point at it.</p>
<pre id="text">{text}</pre>
</body>
</html>
"""
