"""Overfitting: a character GPT on a part of one play, with and without dropout.

Two blocks of width 64 with a context of 32 learn the first 5,000 characters of Hamlet by 800 steps
of 512 characters (82 passes) at a peak learning rate of 5e-3. (With 10,000 characters and 500 steps
a run without dropout did not overfit, so these were chosen.) Losses are in nats a character with
dropout off, ten times a run, on evenly spaced windows of the training text and of the play's last
tenth. "Best" is the lowest of the ten validation losses, so it chooses a step for each rate; "last"
chooses nothing. A seed decides initial weights, batches and masks.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import claim, data
from common.claim import Finding, Interval, Result, interval, verdict
from common.gpt import SMALL, compile_steps, make_config, train
from minigpt.config import OptimConfig

RATES = (0.0, 0.2)
NANOGPT = "nanoGPT, config/train_shakespeare_char.py, whose rate is 0.2"


def experiment(scale: claim.Scale) -> Result:
    steps, characters = scale.pick(20, 800, 2000), scale.pick(1000, 5000, 20_000)
    seeds, evals = range(scale.pick(3, 3, 10)), scale.pick(2, 10, 10)
    model = dataclasses.replace(SMALL, block_size=32, **scale.pick({"n_layer": 1}, {}, {}))
    text = data.load_one_play()
    text = text._replace(train=text.train[:characters])
    optim = OptimConfig(learning_rate=5e-3, min_learning_rate=5e-4, warmup_steps=20)
    curves, jobs = {rate: [] for rate in RATES}, [(rate, seed) for rate in RATES for seed in seeds]
    configs = {rate: make_config(steps, model, rate, optim=optim) for rate in RATES}
    trainings = {rate: compile_steps(config, text) for rate, config in configs.items()}
    for rate, seed in scale.track(jobs, "runs"):
        curve = train(trainings[rate], configs[rate], text, seed, evals=evals)
        curves[rate].append((curve.train, curve.validation))
    losses = np.array([curves[rate] for rate in RATES])  # (rate, seed, text, look)
    eval_steps = [steps * (i + 1) // evals for i in range(evals)]
    numbers = {"rates": RATES, "steps": eval_steps, "losses by rate, seed, text and step": losses}
    measured = measure(losses)
    return Result(findings(measured), picture(eval_steps, losses), numbers | {"measured": measured})


def measure(losses) -> dict[str, Interval]:
    """The best and last losses of the validation text by rate, and the effects of dropout."""
    train_last, validation = losses[:, :, 0, -1], losses[:, :, 1]
    best, last = validation.min(-1), validation[..., -1]  # (rate, seed)
    values = {f"best at {rate}": best[i] for i, rate in enumerate(RATES)}
    values |= {f"last at {rate}": last[i] for i, rate in enumerate(RATES)}
    values |= {
        "rise without dropout": last[0] - best[0],
        "best, change": best[1] - best[0],
        "last, change": last[1] - last[0],
        "training, change": train_last[1] - train_last[0],
    }
    return {name: interval(values_by_seed) for name, values_by_seed in values.items()}


def findings(measured: dict[str, Interval]) -> list[Finding]:
    """The claims and their verdicts."""
    both = "; ".join(
        f"{name}: {measured[name]:.2f}" for name in map(str, measured) if " at " in name
    )
    rise = measured["rise without dropout"]
    best, last, training = (measured[f"{name}, change"] for name in ("best", "last", "training"))
    return [
        Finding(
            "A GPT overfits a small text without dropout, and its last loss is lower with dropout",
            NANOGPT,
            f"validation loss at rate 0, last minus best: {rise:+.2f}; last "
            f"loss at rate 0.2 minus that at 0: {last:+.2f}, in training {training:+.2f} ({both})",
            verdict(rise.positive and last.negative),
        ),
        Finding(
            "Dropout lowers the best validation loss too, not only the last",
            "nanoGPT, train.py: for finetuning try 0.1+",
            f"best loss at rate 0.2 minus that at 0: {best:+.3f}",
            verdict(best.negative),
        ),
    ]


def picture(steps, losses) -> Figure:
    """Both losses against steps, a line for each seed."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for i, rate in enumerate(RATES):
        for seed, (training, validation) in enumerate(losses[i]):
            label = f", rate {rate}" if seed == 0 else None  # one entry of the legend a rate
            axes.plot(steps, validation, f"C{i}.-", label=label and f"validation{label}")
            axes.plot(steps, training, f"C{i}:", label=label and f"training{label}")
    axes.set(xlabel="step", ylabel="loss, nats a character (dropout off)")
    axes.legend()
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
