"""Rates of dropout in a small GPT: at pretraining, and at fine-tuning on little text.

The GPT (2 layers, width 48, 32 characters of context) drops at nanoGPT's four sites. Pretraining
reads a fiftieth of the plays, once. Fine-tuning starts from the seed's weights pretrained without
dropout. It reads the first 1,000 characters of Macbeth, which is not in the training text, for
about 75 passes: this number was chosen because it overfits without dropout. The first 6,000
characters, for 13 passes, do not. A rate or a step to stop at is chosen by the lowest loss on one
text (half of the validation plays; Macbeth's third quarter) and measured on another (the other
half; the last quarter), seed by seed. The learning rate was set before, without dropout.
"""

import collections
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data, sweep
from common.claim import Finding, Interval, Result, by_cell, interval
from minigpt.config import Config, DropoutConfig, ModelConfig, OptimConfig
from minigpt.data import load_plays

RATES = (0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
PRETRAINED = "pretraining"
PAPERS = "Vaswani et al., Attention is all you need, NeurIPS 2017; Hugging Face, GPT2Config (0.1)"


def experiment(scale: claim.Scale) -> Result:
    losses = run_all(scale)
    cells = {name: differences_to_rate_0(measuring) for name, (_, measuring) in losses.items()}
    numbers = {"rates": RATES, "loss, difference to rate 0": cells}
    language = judge_best_rate(0.02, 0.1, losses, "language", PAPERS)
    return Result([*findings(cells), language], picture(cells), numbers)


def run_all(scale: claim.Scale) -> dict[str, np.ndarray]:
    """Losses by setting: (text to choose on or to measure on, rate, seed)."""
    text = data.load_all_plays()
    play = text.tokenizer.encode(load_plays()["macbeth"])
    quarters, halves = np.array_split(play, 4), np.array_split(text.validation, 2)
    other, same = dict(enumerate(halves)), dict(enumerate(quarters[2:]))
    steps, seeds = scale.pick(20, 300, 3000), range(scale.pick(3, 4, 10))
    model = ModelConfig(n_layer=scale.pick(1, 2, 4), n_head=2, n_embd=48, block_size=32)
    optim = OptimConfig(learning_rate=3e-3, min_learning_rate=3e-4, warmup_steps=steps // 10)
    config = Config(steps=steps, batch_size=8, mesh="data=1", model=model, optim=optim)
    run = sweep.Runner(config, text.tokenizer.vocab_size, seeds, evaluations=scale.pick(2, 5, 20))
    losses, pretrained_params = collections.defaultdict(list), None
    for rate in scale.track(RATES, "rates"):
        dropout = DropoutConfig.uniform(rate)
        curves = run(text.train, other, dropout)
        losses[PRETRAINED].append(final_losses(curves.losses))
        if rate == 0:  # the first
            pretrained_params = curves.params
        for length in scale.pick((500,), (1000, 6000), (1000, 6000, 40_000)):
            tuned = run(play[:length], same, dropout, params=pretrained_params).losses
            losses[f"{length:,} characters, to the end"].append(final_losses(tuned))
            losses[f"{length:,} characters, stopped early"].append(early_stopped_losses(tuned))
    return {name: np.swapaxes(runs, 0, 1) for name, runs in losses.items()}


def final_losses(losses: dict[int, np.ndarray]) -> list[np.ndarray]:
    """The losses of both texts at the last evaluation, by seed."""
    return [losses[0][:, -1], losses[1][:, -1]]


def early_stopped_losses(losses: dict[int, np.ndarray]) -> list[np.ndarray]:
    """The losses of both texts at the evaluation that is best on the first text."""
    best = losses[0].argmin(axis=1)[:, None]
    return [np.take_along_axis(losses[i], best, axis=1)[:, 0] for i in (0, 1)]


def differences_to_rate_0(losses: np.ndarray) -> dict[float, Interval]:
    """Every rate above 0 against rate 0, of (rate, seed)."""
    return dict(zip(RATES[1:], map(interval, losses[1:] - losses[0]), strict=True))


def findings(cells: dict[str, dict[float, Interval]]) -> list[Finding]:
    """The claims about rate 0 and the rates above it, by setting."""
    text = "A small GPT that pretrains on less than one pass of its text is best without dropout"
    source, what = 'nanoGPT, train.py: "for pretraining 0 is good"', "Loss minus that of rate 0"
    condition = "the rate it is compared with is"
    results = [by_cell(text, source, f"{what}, in nats", cells[PRETRAINED], condition)]
    source, what = 'nanoGPT, train.py: "for finetuning try 0.1+"', f"{what} on unseen Macbeth"
    for mode in [name for name in cells if name != PRETRAINED]:
        rates = {rate: cell for rate, cell in cells[mode].items() if rate >= 0.1}
        text = f"Fine-tuning on little text needs a rate of 0.1 or more ({mode})"
        results.append(by_cell(text, source, f"{what}, in nats", rates, "the rate is", sign=-1))
    return results


def judge_best_rate(low: float, high: float, settings: dict, field: str, source: str) -> Finding:
    """Whether the best rate in the range beats the best outside it, each chosen on other text."""
    gains = {}
    for name, (choosing, measuring) in settings.items():
        order = choosing.mean(axis=1).argsort()
        inside = next(i for i in order if low <= RATES[i] <= high)
        outside = next(i for i in order if not low <= RATES[i] <= high)
        cell = f"{name} ({RATES[inside]} against {RATES[outside]})"
        gains[cell] = interval(measuring[inside] - measuring[outside])
    text = f"The best rate is from {low:.0%} to {high:.0%} in {field}"
    what = "Loss at the best rate in the range minus that at the best outside it, in nats"
    return by_cell(text, source, what, gains, "it is", sign=-1)


def picture(cells: dict[str, dict[float, Interval]]) -> Figure:
    """The differences to rate 0, by rate: a panel a text, a line for when training stops."""
    texts = list(dict.fromkeys(name.partition(", ")[0] for name in cells))
    figure, panels = charts.panels(*[3.8] * len(texts), height=3.8)
    for axes, text in zip(panels, texts, strict=True):
        series = {name: cells[name].values() for name in cells if name.startswith(text)}
        what = text if text == PRETRAINED else f"fine-tuning on {text}"
        charts.lines(axes, range(1, len(RATES)), series, xlabel="dropout rate", title=what)
        axes.axhline(0, color="gray", linewidth=0.8)
        axes.set_xticks(range(1, len(RATES)), [str(rate) for rate in RATES[1:]])
        axes.margins(y=0.25)  # room for the legend
    panels[0].set_ylabel("loss minus that of rate 0, nats\n(below 0: dropout helps)")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
