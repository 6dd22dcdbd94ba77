"""Zoneout on an LSTM's recurrent state, and what is remembered.

The task, the LSTM and its training are those of recurrent.py: the LSTM remembers a marked symbol
for up to 24 steps; 500 steps of 32, rate 0.5. With zoneout every unit of h and of c keeps its old
value with that probability at each step; with dropout off it is the mean of old and new value. The
seed decides weights, data and masks; differences are taken seed by seed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common.claim import Finding, Result, Scale, main
from common.memory import lstm
from dropout_jax import fold, zoneout
from recurrent import RATE, compare_recall, naive_both, picture, train_kinds

KRUEGER = "Krueger et al., Zoneout, ICLR 2017"


def experiment(scale: Scale) -> Result:
    off, on = train_kinds(scale, KINDS)
    numbers = {"dropout off (seed, delay)": off, "dropout on": on}
    return Result(findings(off, on), picture(off, on), numbers)


def zoneout_lstm(cell, x, h, c, *, now, **_):
    """Some units of h and c keep their last value."""
    new_h, new_c = lstm(cell, x, h, c)
    return (
        zoneout(new_h, h, RATE, key=fold(now, "zoneout h")),
        zoneout(new_c, c, RATE, key=fold(now, "zoneout c")),
    )


KINDS = {"none": lstm, "naive, h and c": naive_both, "zoneout": zoneout_lstm}


def findings(off, on) -> list[Finding]:
    """Zoneout against a fresh mask on both states, with dropout off and on."""
    text = "Zoneout remembers more than a fresh mask on h and c"
    training = "With dropout on, as in training, zoneout also remembers more than a fresh mask"
    ours, theirs = "zoneout", "naive, h and c"
    return [
        compare_recall(text, KRUEGER, off, ours, theirs),
        compare_recall(training, KRUEGER, on, ours, theirs),
    ]


if __name__ == "__main__":
    main(experiment, __doc__, __file__)
