"""Color a text by a number for every character, in the terminal and as one HTML file."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

LEVELS = 10
# Pale yellow to red, for the levels 1 to 9; black text is readable on each. Level 0 has no color.
_COLORS = (
    *("#fff3c4", "#ffe699", "#ffd875", "#ffc75a", "#ffb347"),
    *("#ff9c3f", "#ff843c", "#fb6a3a", "#f2503a"),
)


def color_levels(values: np.ndarray, top: float) -> np.ndarray:
    """The level of each value: 0 to 9, in tenths of `top`; 9 above `top`; -1 for NaN."""
    tenths = np.clip(np.nan_to_num(values) / top * LEVELS, 0, LEVELS - 1).astype(int)
    return np.where(np.isnan(values), -1, tenths)


def color_scale_max(values: np.ndarray, top: float | None) -> float:
    """The value of the strongest color: `top`, or the largest value of the text."""
    require_top(top)
    largest = np.nanmax(values, initial=0.0)
    return top if top is not None else float(largest) or 1.0


def require_top(top: float | None) -> None:
    """Raise ValueError unless `top` is None, or positive and finite."""
    if top is not None and not 0 < top < float("inf"):
        raise ValueError(f"top={top!r} is not allowed: it must be positive and finite.")


def print_colored(console: Console, text: str, values: np.ndarray, name: str, top: float) -> None:
    """Print the text on a colored background, or each line with its levels below it.

    The second form is for a console without colors. `name` is the name of the values.
    """
    levels = color_levels(values, top)
    has_color = console.color_system is not None and not console.no_color
    console.print(_legend(name, top, has_color), soft_wrap=True)
    console.print()
    if has_color:
        console.print(_color_text(text, levels), soft_wrap=True)
        return
    for start, end in _split_lines(text, console.width):
        console.print(Text(_to_printable(text[start:end])), soft_wrap=True)
        console.print(Text(_digits(text[start:end], levels[start:end])), soft_wrap=True)


def _legend(name: str, top: float, has_color: bool) -> Text:
    legend = Text(f"{name}, nats: 0 ")
    for level in range(LEVELS):
        legend.append(f" {level} ", _style(level) if has_color else "")
    legend.append(f" {top:.3g} or more")
    if not has_color:
        legend.append("; . marks the first character, which has no text before it")
    return legend


def _style(level: int) -> Style | str:
    return Style(color="#000000", bgcolor=_COLORS[level - 1]) if level > 0 else ""


def _color_text(text: str, levels: np.ndarray) -> Text:
    """Color every character; a newline gets a visible symbol that shows its color."""
    colored = Text()
    for character, level in zip(text, levels, strict=True):
        symbols = "↵\n" if character == "\n" and level > 0 else character
        colored.append(symbols[0] if symbols == "\n" else _to_printable(symbols[0]), _style(level))
        colored.append(symbols[1:])
    return colored


def _to_printable(text: str) -> str:
    """Replace control characters, which a terminal could execute, by visible symbols."""
    text = text.replace("\n", "↵").replace("\t", "→")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _split_lines(text: str, width: int) -> list[tuple[int, int]]:
    """The start and end of each line, including its newline; long lines are split at the width."""
    lines, start, room = [], 0, width
    for i, character in enumerate(text):
        room -= max(cell_len(_to_printable(character)), 1)
        if room < 0:
            lines.append((start, i))
            start, room = i, width - max(cell_len(_to_printable(character)), 1)
        if character == "\n":
            lines.append((start, i + 1))
            start, room = i + 1, width
    return [*lines, (start, len(text))] if start < len(text) else lines


def _digits(text: str, levels: np.ndarray) -> str:
    """The level of every character, padded to the width of the character."""
    pairs = zip(_to_printable(text), levels, strict=True)
    return "".join(("." if x < 0 else str(x)).ljust(cell_len(c)) for c, x in pairs)


def to_html(
    text: str, measures: Mapping[str, Sequence[float] | np.ndarray], name: str, top: float
) -> str:
    """One HTML file without external resources, for light and dark mode.

    The colors show `measures[name]`; the title of each character has its numbers in all measures.
    The element with the id "text" contains the text.
    """
    levels = color_levels(np.asarray(measures[name]), top)
    spans = (
        _span(character, level, {measure: values[i] for measure, values in measures.items()})
        for i, (character, level) in enumerate(zip(text, levels, strict=True))
    )
    legend = "".join(f'<span class="l{level}"> {level} </span>' for level in range(LEVELS))
    colors = "\n".join(
        f".l{level} {{ background: {color}; color: #000 }}"
        for level, color in enumerate(_COLORS, start=1)
    )
    return _PAGE.format(
        name=html.escape(name),
        top=f"{top:.3g}",
        legend=legend,
        colors=colors,
        text="".join(spans),
    )


def _span(character: str, level: int, values: dict[str, float]) -> str:
    known = [f"{measure} {x:.3f}" for measure, x in values.items() if not np.isnan(x)]
    numbers = ", ".join(known) or "no text before it"
    title = f"{json.dumps(character, ensure_ascii=False)}: {numbers}"
    content = html.escape(character).replace("\r", "&#13;")
    css_class = f' class="l{level}"' if level > 0 else ""
    return f'<span{css_class} title="{html.escape(title)}">{content}</span>'


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
{colors}
</style>
</head>
<body>
<p class="legend">{name}, nats: 0 {legend} {top} or more. Point at a character to see its
numbers.</p>
<pre id="text">{text}</pre>
</body>
</html>
"""
