"""The results on the pages of docs/applications: a picture, a table, and the verdicts."""

from collections.abc import Callable

from common.rates import parse_interval
from pages import forest
from pages.chapter_page import experiment_link, join
from pages.chapters import APPLICATIONS, script_path
from pages.highlights import make_chart
from pages.markdown import describe_charts, describe_device, describe_verdict, format_table, image
from pages.regions import Chart


def _seq2seq_levels(numbers: dict) -> dict[str, dict]:
    parts = "new dates", "new combinations"
    levels: dict[str, dict] = {part: {} for part in parts}
    for cell in sorted(numbers["beam"], key=lambda cell: not cell.startswith("rate")):
        setting, _, part = cell.rpartition(", ")
        levels[part][setting] = parse_interval(numbers["beam"][cell]).percent()
    return {f"{part}: exact with a beam of 4, %": cells for part, cells in levels.items()}


def _masked_lm_levels(numbers: dict) -> dict[str, dict]:
    trained = {name: value for name, value in numbers["loss"].items() if name != "untrained"}
    levels = {
        "loss of masked words, nats": trained,
        "macro-F1 of the frozen features": numbers["macro-F1"],
    }
    order = sorted(numbers["macro-F1"], key=lambda name: (name == "untrained", name != "none"))
    return {
        what: _parse({name: cells[name] for name in order if name in cells})
        for what, cells in levels.items()
    }


def _vision_levels(numbers: dict) -> dict[str, dict]:
    rates = [f"rate {rate:g}" for rate in numbers["rates"]]
    tables = numbers["test accuracy, %"].items()
    return {
        f"augmentation: {name}": _parse(dict(zip(rates, cells, strict=True)))
        for name, cells in tables
    }


def _recurrent_levels(numbers: dict) -> dict[str, dict]:
    keys = ("bits per character, stopped early", "at the end")
    early, end = (_parse(numbers[key]) for key in keys)
    return {"bits per character, stopped early": early, "bits per character, at the end": end}


def _parse(cells: dict) -> dict:
    return {name: parse_interval(value) for name, value in cells.items()}


# For each application what it measures, by setting; what a setting is; and how it is written.
LEVELS: dict[str, tuple[Callable[[dict], dict[str, dict]], str, str]] = {
    "seq2seq": (_seq2seq_levels, "setting", ".1f"),
    "encoder_masked_lm": (_masked_lm_levels, "dropout", ".3f"),
    "vision": (_vision_levels, "test accuracy, %", ".1f"),
    "recurrent_lm": (_recurrent_levels, "dropout", ".3f"),
}


NOTES = {
    "encoder_masked_lm": "Counts of the words give a macro-F1 of {macro-F1 of word counts:.3f}."
}


def level_charts(name: str, record: dict) -> list[Chart]:
    """A chart for each quantity, with a row for each setting."""
    read, _, spec = LEVELS[name]
    levels = read(record["numbers"])
    return [make_chart(heading, cells, None, spec) for heading, cells in levels.items()]


def draw_levels(results: dict[str, dict]) -> dict[str, str]:
    """Path and SVG of each application's picture."""
    return {
        f"cells/{name}_levels.svg": forest.draw(level_charts(name, record), record["title"])
        for name, record in results.items()
        if name in LEVELS
    }


def render_results(name: str, record: dict, folder: str) -> str:
    """The part of an application's page that is made of its result."""
    scale = "" if record["scale"] == "default" else f" --{record['scale']}"
    verdicts = [
        [finding["claim"], describe_verdict(name, i, finding)]
        for i, finding in enumerate(record["findings"])
    ]
    device = describe_device(record)
    measured = f", measured on: {device}" if device else ""
    return join(
        "## Results",
        f"Means over independent seeds with 95 % intervals (`python examples/{script_path(name)}"
        f"{scale}`{measured}; [numbers](../{folder}/{name}.json)).",
        image(describe_charts(level_charts(name, record)), f"../{folder}/cells/{name}_levels.svg"),
        _levels_table(name, record),
        NOTES.get(name, "").format_map(record["numbers"]),
        format_table(verdicts, ["claim", "verdict"]),
        f"The intervals behind the verdicts are in the chapter "
        f"[{APPLICATIONS}](../{folder}/{experiment_link(name, record)}).",
    )


def _levels_table(name: str, record: dict) -> str:
    """A row for each setting, a column for each quantity."""
    read, what, spec = LEVELS[name]
    levels = read(record["numbers"])
    columns = levels.values()
    labels = dict.fromkeys(label for cells in columns for label in cells)
    rows = [
        [label, *(format(cells[label], spec) if label in cells else "" for cells in columns)]
        for label in labels
    ]
    return format_table(rows, [what, *levels])
