"""Where dropout goes in a GPT: each of seven places alone, and the usual sets, at rate 0.2.

A GPT (2 layers, width 48, 32 characters of context) reads the first 1,000 characters of Hamlet for
about 75 passes: without dropout that overfits, which is why they are 1,000. Every set is compared
with no dropout on the second half of Hamlet's last tenth, seed by seed, at the last step; the best
single place is chosen on the first half. Rate and learning rate were set before.
"""

import numpy as np
from matplotlib.figure import Figure

from common import claim, data, sweep
from gpt_rates import SHAPE, among, either
from minigpt.config import Config, DropoutConfig, ModelConfig, OptimConfig

RATE = 0.2
SETS = {
    "Vaswani et al. (3)": ("embed", "attn_out", "mlp_out"),
    "GPT-2, nanoGPT (4)": ("embed", "attn_weights", "attn_out", "mlp_out"),
    "Annotated Transformer (5)": ("embed", "attn_weights", "attn_out", "mlp_hidden", "mlp_out"),
    "all seven": sweep.SITES,
}


def experiment(scale: claim.Scale) -> claim.Result:
    choosing, measuring, train = losses(scale)
    none = measuring.pop("none")
    cells = {name: claim.interval(each - none) for name, each in measuring.items()}
    best = min(sweep.SITES, key=lambda site: choosing[site].mean())
    findings = [
        helps("Dropout at any one place of a GPT helps where it overfits", SINGLE, cells),
        helps("The usual sets of places help where a GPT overfits", USUAL, cells),
        sets_beat_single(best, measuring),
        weights_add(measuring),
    ]
    numbers = {"loss, difference to none": cells, "loss without dropout": claim.interval(none)}
    numbers["training loss"] = {name: claim.interval(each) for name, each in train.items()}
    return claim.Result(findings, draw(cells), numbers | {"best single": best})


SINGLE = (
    sweep.SITES,
    "Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016 (before every weight "
    "layer); Huang et al., Deep networks with stochastic depth, ECCV 2016 (drop_path)",
)
USUAL = (
    tuple(SETS),
    "Vaswani et al., Attention is all you need, NeurIPS 2017, 5.4; Radford et al., GPT-2, 2019; "
    "Rush, The annotated transformer, 2018",
)


def losses(scale: claim.Scale) -> list[dict[str, np.ndarray]]:
    """Final losses by set and seed: on the text to choose on, to measure on, and to train on."""
    text = data.one_play("hamlet")
    ids = text.train[: scale.pick(500, 1000, 10_000)]
    watched = dict(enumerate([*np.array_split(text.validation, 2), ids]))
    steps, seeds = scale.pick(20, 300, 4000), range(scale.pick(3, 5, 10))
    model = ModelConfig(n_layer=scale.pick(1, 2, 4), **SHAPE)
    optim = OptimConfig(learning_rate=3e-3, min_learning_rate=3e-4, warmup_steps=steps // 10)
    config = Config(steps=steps, batch_size=8, mesh="data=1", model=model, optim=optim)
    run = sweep.Runner(config, text.tokenizer.vocab_size, seeds, looks=1, sites=sweep.SITES)
    sets = {"none": ()} | {site: (site,) for site in sweep.SITES} | SETS
    found = [{}, {}, {}]
    for name in scale.track(sets, "places"):
        runs = run(ids, watched, DropoutConfig(**dict.fromkeys(sets[name], RATE))).losses
        for i, each in enumerate(found):
            each[name] = runs[i][:, -1]
    return found


def helps(words: str, group: tuple, cells: dict[str, claim.Interval]) -> claim.Finding:
    names, source = group
    good = [name for name in names if cells[name].negative]
    told = "; ".join(f"{name}: {cells[name]:+.3f}" for name in names)
    return claim.Finding(
        words,
        source,
        f"Validation loss minus that without dropout, in nats, rate {RATE}. {told}",
        either(good, list(names), f"it is at {among(good)}"),
    )


def sets_beat_single(best: str, runs: dict[str, np.ndarray]) -> claim.Finding:
    gains = {name: claim.interval(runs[name] - runs[best]) for name in SETS}
    good = [name for name in gains if gains[name].negative]
    told = "; ".join(f"{name}: {gain:+.3f}" for name, gain in gains.items())
    return claim.Finding(
        "A set of places does better than any single place at the same rate",
        USUAL[1],
        f"Validation loss minus that of the best single place, {best}, in nats. {told}",
        either(good, list(gains), f"the set is {among(good)}"),
    )


def weights_add(runs: dict[str, np.ndarray]) -> claim.Finding:
    three, four = list(SETS)[:2]
    gain = claim.interval(runs[four] - runs[three])
    return claim.Finding(
        "Dropping attention weights too is better than the three places of the first Transformer",
        "GPT2Config of Hugging Face (attn_pdrop 0.1); Zehui et al., DropAttention, 2019",
        f"Validation loss, {four} minus {three}: {gain:+.3f} nats",
        claim.verdict(gain.negative),
    )


def draw(cells: dict[str, claim.Interval]) -> Figure:
    """A bar a set; left is better."""
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axes = figure.subplots()
    means, lows, highs = np.array(list(cells.values())).T
    colours = ["tab:blue" if name in sweep.SITES else "tab:orange" for name in cells]
    axes.barh(range(len(cells)), means, color=colours)
    axes.errorbar(
        means, range(len(cells)), xerr=[means - lows, highs - means], fmt="none", color="black"
    )
    axes.set_yticks(range(len(cells)), cells)
    axes.invert_yaxis()
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set_xlabel("validation loss minus that without dropout, nats (below 0: it helps)")
    axes.set_title(f"A GPT that overfits, dropout {RATE}: one place alone (blue), sets (orange)")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
