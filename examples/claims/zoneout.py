"""Zoneout on an LSTM's recurrent state, and what is remembered.

The task, the LSTM and its training are those of recurrent.py: a marked symbol to be kept for up to
24 steps; 500 steps of 32, rate 0.5. Zoneout: at each step every unit of h and of c keeps its old
value with that probability; with dropout off it is the mean of old and new. The seed decides
weights, data and masks; differences are taken seed by seed.
"""

from common.claim import Finding, Result, Scale, main
from common.memory import lstm, train
from dropout_jax import fold, zoneout
from recurrent import RATE, above, naive_both, picture

KRUEGER = "Krueger et al., Zoneout, ICLR 2017"


def experiment(scale: Scale) -> Result:
    """Train an LSTM without dropout, with a fresh mask at each step, and with zoneout."""
    seeds, steps = scale.pick(3, 5, 10), scale.pick(3, 500, 2000)
    jobs = scale.track(KINDS.items(), "kinds of dropout")
    found = {kind: train(step, seeds, steps) for kind, step in jobs}
    off, on = ({kind: both[i] for kind, both in found.items()} for i in (0, 1))
    numbers = {"dropout off (seed, delay)": off, "dropout on": on}
    return Result(findings(off, on), picture(off, on), numbers)


def kept(cell, x, h, c, *, now, **_):
    """Some units of the next h and c are those of the last."""
    new_h, new_c = lstm(cell, x, h, c)
    return (
        zoneout(new_h, h, RATE, key=fold(now, "zoneout h")),
        zoneout(new_c, c, RATE, key=fold(now, "zoneout c")),
    )


KINDS = {"none": lstm, "naive, h and c": naive_both, "zoneout": kept}


def findings(off, on) -> list[Finding]:
    """Zoneout against a fresh mask on both states, with dropout off and on."""
    text = "Zoneout remembers more than a fresh mask on h and c."
    training = "In training (dropout on), too, zoneout remembers more than a fresh mask."
    ours, theirs = "zoneout", "naive, h and c"
    return [
        above(text, KRUEGER, off, ours, theirs),
        above(training, KRUEGER, on, ours, theirs),
    ]


if __name__ == "__main__":
    main(experiment, __doc__, __file__)
