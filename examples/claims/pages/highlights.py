"""The claims that matter most: two sentences each, whose numbers come from the results.

In a sentence `{0[0.5]}` is the mean of the cell "0.5" of the first chart, as the chart writes it;
`{least}` and `{most}` are the labels of the cells of that chart with the smallest and the largest
mean, `{least_mean}` and `{most_mean}` their means.
"""

from collections.abc import Callable
from typing import NamedTuple

from common.claim import Interval, is_between
from common.rates import BESIDE, parse_interval
from pages.cells import Cell
from pages.regions import ABOVE, Chart, Region, Row, charts_of


class Highlight(NamedTuple):
    """A finding of a script, what was measured, and what came out."""

    script: str
    number: int
    measured: str
    outcome: str
    charts: Callable[[dict], list[Chart]] | None = None
    """draws other cells than the finding's own, from the script's numbers"""


def make_chart(heading: str, cells: dict[str, Interval], region: Region | None, spec: str) -> Chart:
    """A chart of intervals; without a region every row has a full dot."""
    rows = []
    for label, value in cells.items():
        holds = region is None or is_between(value, region)
        rows.append(Row(Cell(label, *value, format(value, spec)), holds))
    return Chart(heading, rows, region)


def overfitting_charts(numbers: dict) -> list[Chart]:
    """How the last and the best validation loss change with dropout."""
    losses = {key: parse_interval(value) for key, value in numbers["measured"].items()}
    cells = {"last loss": losses["last, change"], "best loss": losses["best, change"]}
    heading = "validation loss in nats at rate 0.2 minus that without dropout"
    return [make_chart(heading, cells, Region(None, 0), "+.3f")]


def partner_charts(numbers: dict) -> list[Chart]:
    """What dropout gains beside each other regulariser."""
    cells = {
        partner: parse_interval(gains[BESIDE]).percent()
        for partner, gains in numbers["accuracy"].items()
    }
    return [make_chart("points of test accuracy that dropout gains beside", cells, ABOVE, "+.2f")]


HIGHLIGHTS = [
    Highlight(
        *("forgotten_evaluation", 0),
        "A network is evaluated twice: with the dropout of its training left on, and without it.",
        "Its accuracy falls by {0[0.1]} points at rate 0.1 and by {0[0.8]} points at rate 0.8.",
    ),
    Highlight(
        *("co_adaptation", 0),
        "Half of the hidden units of trained networks are removed.",
        "Dropout at rate 0.2 in training changes the remaining accuracy by {0[0.2]} points, at "
        "rate 0.5 by {0[0.5]} points.",
    ),
    Highlight(
        *("data_size", 1),
        "A wide network learns from small parts of the images, at several rates.",
        "The change of the test accuracy is between {least_mean} ({least}) and {most_mean} "
        "({most}); the brackets give the number of examples and the rate.",
    ),
    Highlight(
        *("gpt_overfitting", 0),
        "A small GPT passes many times over a part of one play, with dropout and without.",
        "With dropout the last validation loss changes by {0[last loss]} nats; the best validation "
        "loss, which early stopping gives, changes by {0[best loss]} nats.",
        overfitting_charts,
    ),
    Highlight(
        *("gpt_rates", 0),
        "A small GPT trains on less than one pass of its text, at several rates.",
        "Its loss on unseen text changes by {0[0.02]} nats at rate 0.02, by {0[0.2]} at 0.2 and by "
        "{0[0.5]} at 0.5.",
    ),
    Highlight(
        *("gpt_rates", 1),
        "The same GPT then trains on little text until it knows it by heart.",
        "Its loss on unseen text changes by {0[0.1]} nats at rate 0.1 and by {0[0.3]} at 0.3.",
    ),
    Highlight(
        *("placement", 0),
        "A GPT that overfits has dropout at one of its sites at a time.",
        "The change of its loss is between {least_mean} nats at `{least}` and {most_mean} nats at "
        "`{most}`.",
    ),
    Highlight(
        *("interactions", 3),
        "A network learns from few images beside one other regulariser at a time, with dropout and "
        "without.",
        "Dropout changes the test accuracy by {0[layer norm]} points beside layer norm, by "
        "{0[augmentation]} beside augmentation and by {0[early stopping]} beside early stopping.",
        partner_charts,
    ),
    Highlight(
        *("cost", 1),
        "The steps to the same training loss are counted at rate 0.5 and without dropout.",
        "Dropout needs {0[0.3]} times the steps to a loss of 0.3, and {0[0.03]} times to 0.03.",
    ),
    Highlight(
        *("r_drop", 0),
        "R-Drop makes two passes and penalises their difference; plain dropout makes two passes.",
        "The change of the test accuracy is between {least_mean} points ({least} examples) and "
        "{most_mean} points ({most} examples).",
    ),
    Highlight(
        *("uncertainty", 0),
        "MC dropout and the softmax of the same network predict digits like those of training, and "
        "rotated digits.",
        "The reduction of the calibration error (ECE) by MC dropout is {0[ECE on test digits]} on "
        "digits like those of training, and {0[ECE on digits rotated by 30°]} on rotated ones.",
    ),
    Highlight(
        *("seq2seq", 0),
        "An encoder and a decoder translate dates from many ways of writing to one.",
        "The share of exact dates changes by {0[rate 0.1, new dates]} points at rate 0.1 on dates "
        "that are not trained on, and by {0[rate 0.3, new dates]} points at rate 0.3.",
    ),
]


def highlight_charts(highlight: Highlight, record: dict) -> list[Chart]:
    """The picture of a highlight."""
    if highlight.charts:
        return highlight.charts(record["numbers"])
    return charts_of(highlight.script, highlight.number, record["findings"][highlight.number])


def write_sentences(highlight: Highlight, record: dict) -> str:
    """Both sentences with their numbers."""
    charts = highlight_charts(highlight, record)
    means = [{row.cell.label: _mean(row.cell) for row in chart.rows} for chart in charts]
    cells = sorted((row.cell for row in charts[0].rows), key=lambda cell: cell.mean)
    ends = {"least": cells[0].label, "most": cells[-1].label}
    ends |= {"least_mean": _mean(cells[0]), "most_mean": _mean(cells[-1])}
    return f"{highlight.measured} {highlight.outcome.format(*means, **ends)}"


def _mean(cell: Cell) -> str:
    """The mean as the chart writes it."""
    return cell.text.partition(" ")[0]
