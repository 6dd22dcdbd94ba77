"""Rates of dropout: a small GPT at pretraining and fine-tuning, and images.

The GPT (2 layers, width 48, 32 characters of context) drops at nanoGPT's four sites. Pretraining
reads a fiftieth of the plays, once. Fine-tuning goes on, from the seed's weights pretrained without
dropout, on the first 1,000 characters of Macbeth, which is not in the training text, for about 75
passes: without dropout that overfits, which is why they are 1,000. On the first 6,000, for 13
passes, it does not. The images are 1,000 MNIST digits, for an MLP with two hidden layers of 128.
What is chosen (a rate, a step to stop at) has the lowest loss on one text (half of the validation
plays; Macbeth's third quarter; half of the other digits), and is measured on another (the other
half; the last quarter), seed by seed. Learning rates were set before, without dropout.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from common import claim, data, nets, sweep
from dropout_jax import fold
from minigpt import corpus
from minigpt.config import Config, DropoutConfig, ModelConfig, OptimConfig

RATES = (0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
SHAPE = {"n_head": 2, "n_embd": 48, "block_size": 32}
PRETRAINED, IMAGES = "pretraining", "images"
PAPERS = "Vaswani et al., Attention is all you need, NeurIPS 2017; Hugging Face, GPT2Config (0.1)"


def experiment(scale: claim.Scale) -> claim.Result:
    losses, accuracy = gpt(scale), images(scale)
    losses[IMAGES] = accuracy.pop("losses")
    cells = {name: by_rate(*both) for name, both in losses.items()}
    findings = [
        zero_is_best(cells[PRETRAINED]),
        some_is_better({name: cells[name] for name in cells if name not in (PRETRAINED, IMAGES)}),
        best_within((0.02, 0.1), {name: losses[name] for name in losses if name != IMAGES}),
        best_within((0.3, 0.5), {IMAGES: losses[IMAGES]}),
    ]
    numbers = {"rates": RATES, "loss, difference to rate 0": cells, **accuracy}
    return claim.Result(findings, draw(cells), numbers)


def gpt(scale: claim.Scale) -> dict[str, np.ndarray]:
    """Losses by setting: (the text to choose on and that to measure on, rate, seed)."""
    text = data.all_plays()
    play = text.tokenizer.encode(corpus.plays()["macbeth"])
    quarters, halves = np.array_split(play, 4), np.array_split(text.validation, 2)
    other, same = dict(enumerate(halves)), dict(enumerate(quarters[2:]))
    steps, seeds = scale.pick(20, 300, 3000), range(scale.pick(3, 4, 10))
    model = ModelConfig(n_layer=scale.pick(1, 2, 4), **SHAPE)
    optim = OptimConfig(learning_rate=3e-3, min_learning_rate=3e-4, warmup_steps=steps // 10)
    config = Config(steps=steps, batch_size=8, mesh="data=1", model=model, optim=optim)
    run = sweep.Runner(config, text.tokenizer.vocab_size, seeds, looks=scale.pick(2, 5, 20))
    found, first = collections.defaultdict(list), None
    for rate in scale.track(RATES, "rates of a GPT"):
        dropout = DropoutConfig.uniform(rate)
        curves = run(text.train, other, dropout)
        found[PRETRAINED].append(last(curves.losses))
        first = curves.params if first is None else first  # of rate 0
        for length in scale.pick((500,), (1000, 6000), (1000, 6000, 40_000)):
            tuned = run(play[:length], same, dropout, params=first).losses
            found[f"{length:,} characters, to the end"].append(last(tuned))
            found[f"{length:,} characters, stopped early"].append(stopped(tuned))
    return {name: np.swapaxes(runs, 0, 1) for name, runs in found.items()}


def last(losses: dict[int, np.ndarray]) -> list[np.ndarray]:
    """The losses of both texts at the last look, by seed."""
    return [losses[0][:, -1], losses[1][:, -1]]


def stopped(losses: dict[int, np.ndarray]) -> list[np.ndarray]:
    """The losses of both texts at the look that is the best on the first."""
    at = losses[0].argmin(axis=1)[:, None]
    return [np.take_along_axis(losses[i], at, axis=1)[:, 0] for i in (0, 1)]


def images(scale: claim.Scale) -> dict[str, np.ndarray]:
    """Losses (the half to choose on, and to measure on; rate; seed), and the second's accuracy."""
    split, steps = data.mnist(1000), scale.pick(5, 200, 3000)
    halves = [(split.x_test[i::2], split.y_test[i::2]) for i in (0, 1)]

    def run(rate, seed):
        key = jax.random.key(seed)

        def loss(layers, rows, key):
            logits = nets.mlp(layers, split.x_train[rows], rate, key=key)
            return nets.cross_entropy(logits, split.y_train[rows])

        layers = nets.mlp_init(fold(key, "weights"), (784, 128, 128, 10))
        layers = nets.fit(loss, layers, 1000, key, steps=steps)
        logits = [nets.mlp(layers, x, 0.0, key=None) for x, _ in halves]
        found = [nets.cross_entropy(out, y) for out, (_, y) in zip(logits, halves, strict=True)]
        return jnp.stack(found), nets.accuracy(logits[1], halves[1][1])

    seeds = jnp.arange(scale.pick(3, 5, 10))
    run = jax.jit(jax.vmap(run, in_axes=(None, 0)))
    found = [run(jnp.float32(rate), seeds) for rate in scale.track(RATES, "rates of an MLP")]
    losses = np.array([loss.T for loss, _ in found], np.float64).swapaxes(0, 1)
    return {"losses": losses, "accuracy": [claim.interval(share) for _, share in found]}


def by_rate(_, losses: np.ndarray) -> dict[float, claim.Interval]:
    """Every rate above 0 against rate 0, of (rate, seed)."""
    pairs = zip(RATES[1:], losses[1:] - losses[0], strict=True)
    return {rate: claim.interval(each) for rate, each in pairs}


def listed(cells: dict[float, claim.Interval]) -> str:
    """Each rate's difference."""
    return "; ".join(f"rate {rate}: {each:+.3f}" for rate, each in cells.items())


def either(good: list, every: list, condition: str) -> str:
    """The verdict when the claim holds in the good ones."""
    if 0 < len(good) < len(every):
        return claim.ONLY_WHEN + condition
    return claim.verdict(good == every)


def zero_is_best(cells: dict[float, claim.Interval]) -> claim.Finding:
    good = [rate for rate in cells if cells[rate].positive]
    return claim.Finding(
        "A small GPT pretrained on more text than it can see once does best without dropout",
        'nanoGPT, train.py: "for pretraining 0 is good"',
        f"Validation loss after pretraining, minus that of rate 0, in nats: {listed(cells)}",
        either(good, list(cells), f"the rate it is compared with is {among(good)}"),
    )


def some_is_better(modes: dict[str, dict[float, claim.Interval]]) -> claim.Finding:
    tried = [(mode, rate) for mode, cells in modes.items() for rate in cells if rate >= 0.1]
    good = [(mode, rate) for mode, rate in tried if modes[mode][rate].negative]
    where = {mode: [rate for other, rate in good if other == mode] for mode, _ in good}
    condition = "; or ".join(f"{mode}, at rate {among(rates)}" for mode, rates in where.items())
    told = ". ".join(f"On {mode}: {listed(cells)}" for mode, cells in modes.items())
    return claim.Finding(
        "Fine-tuning on little text wants a rate of 0.1 or more",
        'nanoGPT, train.py: "for finetuning try 0.1+"',
        f"Loss on unseen Macbeth, minus that of rate 0, in nats. {told}",
        either(good, tried, f"it is on {condition}"),
    )


def best_within(bounds: tuple, settings: dict[str, np.ndarray]) -> claim.Finding:
    """Whether the best rate of the range beats the best outside it, where both were chosen."""
    low, high = bounds
    told, good = [], []
    for name, (choosing, measuring) in settings.items():
        order = choosing.mean(axis=1).argsort()
        inside = next(i for i in order if low <= RATES[i] <= high)
        outside = next(i for i in order if not low <= RATES[i] <= high)
        gain = claim.interval(measuring[inside] - measuring[outside])
        good += [name] if gain.negative else []
        told.append(
            f"{name}: the best of all is {RATES[order[0]]}; {RATES[inside]} against "
            f"{RATES[outside]} outside: {gain:+.3f}"
        )
    images = IMAGES in settings
    return claim.Finding(
        f"The best rate is from {low:.0%} to {high:.0%} in {'vision' if images else 'language'}",
        "Srivastava et al., Dropout, JMLR 2014 (0.5 for hidden units)" if images else PAPERS,
        f"Loss in nats, difference over seeds. {'. '.join(told)}",
        either(good, list(settings), f"it is {among(good)}"),
    )


def among(values: list) -> str:
    """Such as "0.1, 0.2 or 0.3"."""
    *others, final = map(str, values or ["none"])
    return f"{', '.join(others)} or {final}" if others else final


def draw(cells: dict[str, dict[float, claim.Interval]]) -> Figure:
    """The differences to rate 0, by rate."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    tuned = [name for name in cells if name not in (PRETRAINED, IMAGES)]
    panels = {PRETRAINED: [PRETRAINED], "fine-tuning": tuned, IMAGES: [IMAGES]}
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            means, lows, highs = np.array([(0, 0, 0), *cells[name].values()]).T
            errors = [means - lows, highs - means]
            style = {"marker": "o", "capsize": 3, "label": name}
            style["linestyle"] = "--" if name.endswith("early") else "-"
            axes.errorbar(range(len(RATES)), means, errors, **style)
        axes.axhline(0, color="gray", linewidth=0.8)
        axes.set_xticks(range(len(RATES)), RATES)
        axes.set(title=title, xlabel="dropout rate")
        if len(names) > 1:
            axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("loss minus that of rate 0, nats\n(below 0: dropout helps)")
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
