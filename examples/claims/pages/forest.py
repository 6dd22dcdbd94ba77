"""Draws charts of cells as SVG: a row for each, with its interval, on white at a phone's width."""

import textwrap
from xml.sax.saxutils import escape

from matplotlib.ticker import MaxNLocator

from pages.regions import Chart, Region, Row

# Sizes are in units of which the picture has WIDTH: pixels, on a phone.
WIDTH, SHOWN_WIDTH, PAD = 360, 460, 6
LINE, AXIS = 16, 26
ROW, TWO_LINES, THREE_LINES = 19, 36, 50  # the label, the interval and the numbers of a cell
LETTER, DIGIT = 6.5, 6.1  # the widths that a usual sans-serif font needs
LEAST_AXIS = 95  # with less width beside label and numbers, the interval has a line of its own
HOLDS, FAILS, REGION, LINE_COLOR = "#0072B2", "#D55E00", "#E1EDF6", "#666666"  # Okabe and Ito


def draw(charts: list[Chart], title: str) -> str:
    """The charts below each other."""
    parts, top = [], PAD
    for chart in charts:
        drawn, height = _draw_chart(chart, top)
        parts += drawn
        top += height + PAD
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
        f'width="{SHOWN_WIDTH}" height="{SHOWN_WIDTH * top / WIDTH:.0f}" role="img" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#222222">'
    )
    background = f'<rect width="{WIDTH}" height="{top}" rx="4" fill="#ffffff"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", background, *parts, "</svg>\n"])


def _draw_chart(chart: Chart, top: float) -> tuple[list[str], float]:
    """A chart's elements and its height."""
    heading = textwrap.wrap(chart.heading[:1].upper() + chart.heading[1:], 60)
    parts = [_text(PAD, top + LINE * (i + 0.75), line) for i, line in enumerate(heading)]
    labels = LETTER * max(len(row.cell.label) for row in chart.rows)
    numbers = DIGIT * max(len(row.cell.text) for row in chart.rows)
    height = _row_height(chart)
    is_high = height > ROW
    left = PAD + (4 if is_high else labels + 8)
    right = WIDTH - PAD - (4 if is_high else numbers + 8)
    to_x = _scale(chart, left, right)
    first = top + LINE * len(heading) + 6
    bottom = first + height * len(chart.rows)
    for band in _bands(first, height, len(chart.rows)):
        parts += _draw_region(chart.region, to_x, left, right, *band)
    parts += _draw_axis(chart, to_x, left, right, bottom)
    for i, row in enumerate(chart.rows):
        parts += _draw_row(row, to_x, first + height * i, height)
    return parts, bottom + AXIS - top


def _row_height(chart: Chart) -> int:
    """One line if all fits beside each other, else the numbers beside the label or below it."""
    cells = [row.cell for row in chart.rows]
    labels = LETTER * max(len(cell.label) for cell in cells)
    numbers = DIGIT * max(len(cell.text) for cell in cells)
    if labels + numbers + LEAST_AXIS + 4 * PAD + 4 <= WIDTH:
        return ROW
    widths = [LETTER * len(cell.label) + DIGIT * len(cell.text) for cell in cells]
    return TWO_LINES if max(widths) < WIDTH - 3 * PAD else THREE_LINES


def _bands(first: float, height: int, count: int) -> list[tuple[float, float]]:
    """Top and bottom of what may be shaded: all rows, or the lines of intervals without labels."""
    if height == ROW:
        return [(first, first + height * count)]
    return [(first + height * i - ROW - 2, first + height * i - 2) for i in range(1, count + 1)]


def _limits(chart: Chart) -> tuple[float, float]:
    """What the axis covers: all intervals, and the ends of the region."""
    ends = [end for row in chart.rows for end in (row.cell.low, row.cell.high)]
    ends += [bound for bound in chart.region or () if bound is not None]
    margin = 0.06 * (max(ends) - min(ends) or 1)
    return min(ends) - margin, max(ends) + margin


def _scale(chart: Chart, left: float, right: float):
    low, high = _limits(chart)
    return lambda value: left + (right - left) * (value - low) / (high - low)


def _draw_region(region: Region | None, to_x, left, right, top, bottom) -> list[str]:
    """Where the claim wants the intervals: shaded, with a dashed line at each end."""
    if region is None:
        return []
    low = left if region.low is None else to_x(region.low)
    high = right if region.high is None else to_x(region.high)
    size = f'x="{low:.1f}" y="{top:.1f}" width="{high - low:.1f}" height="{bottom - top:.1f}"'
    ends = [to_x(bound) for bound in region if bound is not None]
    return [
        f'<rect {size} fill="{REGION}"/>',
        *(_line(x, top, x, bottom, f'stroke="{LINE_COLOR}" stroke-dasharray="3 2"') for x in ends),
    ]


def _draw_axis(chart: Chart, to_x, left, right, y) -> list[str]:
    low, high = _limits(chart)
    count = 5 if right - left > 200 else 2
    ticks = MaxNLocator(count, steps=[1, 2, 5, 10]).tick_values(low, high)
    parts = [_line(left, y, right, y, f'stroke="{LINE_COLOR}"')]
    for tick in (tick for tick in ticks if low <= tick <= high):
        x, label = to_x(tick), f"{round(tick, 10) + 0.0:g}"
        parts.append(_line(x, y, x, y + 4, f'stroke="{LINE_COLOR}"'))
        parts.append(_text(x, y + 16, label, 'text-anchor="middle" font-size="11"'))
    return parts


def _draw_row(row: Row, to_x, top: float, height: int) -> list[str]:
    """A label, an interval and its numbers; a full dot where the claim holds, else a ring."""
    cell, color, base = row.cell, HOLDS if row.holds else FAILS, top + 13
    y = {ROW: top + 9, TWO_LINES: top + 24, THREE_LINES: top + 39}[height]
    numbers_y = base + (LINE - 2 if height == THREE_LINES else 0)
    low, mean, high = (to_x(value) for value in (cell.low, cell.mean, cell.high))
    fill = color if row.holds else "#ffffff"
    dot = f'<circle cx="{mean:.1f}" cy="{y}" r="4" fill="{fill}" stroke="{color}"'
    return [
        _text(PAD, base, cell.label),
        _text(WIDTH - PAD, numbers_y, cell.text, 'text-anchor="end" font-size="11"'),
        _line(low, y, high, y, f'stroke="{color}" stroke-width="2"'),
        f'{dot} stroke-width="2"/>',
    ]


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'.replace(" >", ">", 1)
