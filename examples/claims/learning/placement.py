"""Where dropout goes in a GPT: each of seven sites alone, and the usual sets, at rate 0.2.

A GPT (2 layers, width 48, 32 characters of context) reads the first 1,000 characters of Hamlet for
about 75 passes; this number was chosen because it overfits without dropout. Every set is compared
with no dropout on the second half of Hamlet's last tenth, seed by seed, at the last step; the best
single site is chosen on the first half. Rate and learning rate were set before.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data, sweep
from common.claim import Finding, Interval, Result, by_cell, interval
from minigpt.config import Config, ModelConfig, OptimConfig

RATE = 0.2
SETS = {
    "Vaswani et al. (3)": ("embed", "attn_out", "mlp_out"),
    "GPT-2, nanoGPT (4)": ("embed", "attn_weights", "attn_out", "mlp_out"),
    "Annotated Transformer (5)": ("embed", "attn_weights", "attn_out", "mlp_hidden", "mlp_out"),
    "all seven": sweep.SITES,
}
SINGLE = (
    "Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016 (before every weight "
    "layer); Huang et al., Deep networks with stochastic depth, ECCV 2016 (drop_path)"
)
USUAL = (
    "Vaswani et al., Attention is all you need, NeurIPS 2017, 5.4; Radford et al., GPT-2, 2019; "
    "Rush, The annotated transformer, 2018"
)
WEIGHTS = "GPT2Config of Hugging Face (attn_pdrop 0.1); Zehui et al., DropAttention, 2019"


def experiment(scale: claim.Scale) -> Result:
    choosing, measuring, train = measure_losses(scale)
    best = min(sweep.SITES, key=lambda site: choosing[site].mean())
    cells = {name: interval(measuring[name] - measuring["none"]) for name in (*sweep.SITES, *SETS)}
    numbers = {
        "loss, difference to none": cells,
        "loss without dropout": interval(measuring["none"]),
        "training loss": {name: interval(each) for name, each in train.items()},
        "best single": best,
    }
    return Result(findings(cells, measuring, best), picture(cells), numbers)


def measure_losses(scale: claim.Scale) -> list[dict[str, np.ndarray]]:
    """Final losses by set and seed: on the text to choose on, to measure on, and to train on."""
    text = data.load_one_play("hamlet")
    ids = text.train[: scale.pick(500, 1000, 10_000)]
    watched = dict(enumerate([*np.array_split(text.validation, 2), ids]))
    steps, seeds = scale.pick(20, 300, 4000), range(scale.pick(3, 5, 10))
    model = ModelConfig(n_layer=scale.pick(1, 2, 4), n_head=2, n_embd=48, block_size=32)
    optim = OptimConfig(learning_rate=3e-3, min_learning_rate=3e-4, warmup_steps=steps // 10)
    config = Config(steps=steps, batch_size=8, mesh="data=1", model=model, optim=optim)
    run = sweep.Runner(config, text.tokenizer.vocab_size, seeds, evaluations=1, sites=sweep.SITES)
    sets = {"none": ()} | {site: (site,) for site in sweep.SITES} | SETS
    losses_by_text = [{}, {}, {}]
    for name in scale.track(sets, "sites"):
        runs = run(ids, watched, sweep.one_rate(sets[name], RATE)).losses
        for i, each in enumerate(losses_by_text):
            each[name] = runs[i][:, -1]
    return losses_by_text


def findings(
    cells: dict[str, Interval], measuring: dict[str, np.ndarray], best: str
) -> list[Finding]:
    """The claims about single sites, about sets, and about sets against single sites."""
    what = f"Loss minus that without dropout, in nats, rate {RATE}"
    alone, sets = ({name: cells[name] for name in names} for names in (sweep.SITES, SETS))
    beyond = {name: interval(measuring[name] - measuring[best]) for name in SETS}
    three, four = list(SETS)[:2]
    more = {f"{four} minus {three}": interval(measuring[four] - measuring[three])}
    text = (
        "Dropout at any one site of a GPT helps where it overfits",
        "The usual sets of sites help where a GPT overfits",
        "A set of sites is better than any single site at the same rate",
        "Dropping attention weights too is better than the three sites of the first Transformer",
    )
    than_best = f"Loss minus that of the best single site, {best}, in nats"
    return [
        by_cell(text[0], SINGLE, what, alone, "it is at", sign=-1),
        by_cell(text[1], USUAL, what, sets, "the set is", sign=-1),
        by_cell(text[2], USUAL, than_best, beyond, "the set is", sign=-1),
        by_cell(text[3], WEIGHTS, "Loss in nats", more, "it is", sign=-1),
    ]


def picture(cells: dict[str, Interval]) -> Figure:
    """A row for each set; right is better."""
    figure, (axes,) = charts.panels(8, height=4.6)
    what = "fall of the validation loss by dropout, nats (above 0: it helps)"
    charts.forest(
        axes,
        {name: -cell for name, cell in cells.items()},
        xlabel=what,
        title=f"A GPT that overfits, dropout {RATE}",
    )
    axes.axhline(
        len(sweep.SITES) - 0.5, color="gray", linestyle=":"
    )  # single sites above, sets below
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
