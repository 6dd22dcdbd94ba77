"""Layer norm before each branch or after each sum: training by depth, warm-up and learning rate.

GPTs of 2 and 8 layers (width 32, 16 characters of context) read 77,000 characters of the plays in
600 steps of 128, with AdamW and a cosine to a tenth of the highest learning rate, with a warm-up
over a tenth of the steps or none. Of three learning rates each order, depth and warm-up has the one
of the lowest mean loss on half of the plays not trained on; losses are those on the other half. A
seed decides weights and batches. Matrices begin with Glorot's normal weights, as in the paper: with
GPT-2's, which are smaller, eight post-norm layers, tried first, learned little in 300 steps.
"""

import jax
import numpy as np
from matplotlib.figure import Figure

from common import charts, claim, data, sweep
from common.claim import Finding, Result, by_cell, interval, listed, verdict_by
from minigpt.config import Config, ModelConfig, OptimConfig

RATES = (5e-4, 1.5e-3, 5e-3)
WARM, COLD = "with warm-up", "without warm-up"
BOUND = 0.05  # nats: a smaller change is called none
XIONG = "Xiong et al., On layer normalization in the transformer architecture, ICML 2020"


def experiment(scale: claim.Scale) -> Result:
    depths = scale.pick((1,), (2, 8), (4, 24))
    orders = [(depth, norm) for depth in depths for norm in ("pre", "post")]
    losses, best, numbers = {}, {}, {}
    for depth, norm in scale.track(orders, "orders of norm"):
        for warm_up, (choosing, measuring) in train(scale, depth, norm).items():
            at, cell = choosing.mean(-1).argmin(), f"{depth} layers, {norm}-norm {warm_up}"
            losses[depth, norm, warm_up] = [interval(each) for each in measuring]
            best[depth, norm, warm_up] = measuring[at]
            by_rate = dict(zip(RATES, losses[depth, norm, warm_up], strict=True))
            numbers[cell] = {"chosen": RATES[at], "loss by learning rate": by_rate}
    return Result(findings(best, depths), picture(losses, depths), numbers)


def train(scale: claim.Scale, depth: int, norm: str) -> dict[str, np.ndarray]:
    """The last losses by warm-up: (text to choose on and to measure on, learning rate, seed)."""
    text, steps, seeds = data.all_plays(), scale.pick(10, 600, 3000), range(scale.pick(3, 3, 10))
    shape = {"n_layer": depth, "n_head": 2, "n_embd": 32, "block_size": 16}
    model = ModelConfig(**shape, norm=norm, scan_layers=True)
    config = Config(steps=steps, batch_size=8, mesh="data=1", model=model)
    run = sweep.Runner(config, text.tokenizer.vocab_size, seeds, looks=1, sites=())
    params = sweep.initial(model, text.tokenizer.vocab_size, seeds)
    params = jax.tree_util.tree_map_with_path(glorot, params)
    halves, found = np.array_split(text.validation, 2), {}
    for name, warmup_steps in (WARM, steps // 10), (COLD, 0):
        optims = [OptimConfig(rate, rate / 10, warmup_steps=warmup_steps) for rate in RATES]
        watched = dict(enumerate(halves))
        runs = [run(text.train, watched, optim=it, params=params).losses for it in optims]
        found[name] = np.array([[run[i][:, -1] for run in runs] for i in (0, 1)])
    return found


def glorot(path, leaf):
    """The matrices of the layers, normal as they are, at Glorot's standard deviation."""
    if not any(getattr(key, "key", None) == "kernel" for key in path):
        return leaf
    return leaf / leaf.std() * (2 / sum(leaf.shape[-2:])) ** 0.5


def findings(best: dict[tuple, np.ndarray], depths: tuple) -> list[Finding]:
    """What is said of both orders, each run at the learning rate chosen for it."""

    def minus(one: tuple[str, str], other: tuple[str, str]):
        return {n: interval(best[n, *one] - best[n, *other]) for n in depths}

    condition, told = "the layers are", "Loss in nats by layers"
    worse = minus(("post", COLD), ("pre", COLD))
    needed = minus(("post", COLD), ("post", WARM))
    spared = minus(("pre", COLD), ("pre", WARM))
    text = f"A pre-norm stack does without warm-up (it loses less than {BOUND} nats by it)"
    what = f"{told}, pre-norm {COLD} minus {WARM}: {listed(spared, '+.3f')}"
    held = verdict_by(condition, {n: cell.high < BOUND for n, cell in spared.items()})
    without = "Without warm-up a post-norm stack trains worse than a pre-norm one"
    told_worse = f"{told}, post-norm minus pre-norm, both {COLD}"
    told_needed = f"{told}, post-norm {COLD} minus {WARM}"
    return [
        by_cell(without, XIONG, told_worse, worse, condition),
        by_cell("A post-norm stack needs warm-up", XIONG, told_needed, needed, condition),
        Finding(text, XIONG, what, held),
    ]


def picture(losses: dict[tuple, list], depths: tuple) -> Figure:
    """The loss by learning rate: a panel a depth."""
    figure, panels = charts.panels(*[4.5] * len(depths))
    for axes, depth in zip(panels, depths, strict=True):
        cells = {f"{norm}-norm {it}": losses[n, norm, it] for n, norm, it in losses if n == depth}
        charts.lines(axes, RATES, cells, xscale="log", xlabel="learning rate")
        axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
        axes.minorticks_off()
        axes.set(title=f"{depth} layers", ylabel="loss on other plays, nats")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
