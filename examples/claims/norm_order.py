"""Layer norm before each branch or after each sum: training by depth, warm-up and dropout.

GPTs of width 32 and 16 characters of context see a small part of the plays once, with AdamW and a
highest learning rate of 3e-3 (and a cosine to a tenth), with a warm-up over a fifth of the steps
or none. Initial weights are GPT-2's, smaller in residual branches by depth, for both orders.
The loss is that on four plays not seen in training, dropout off.
"""

import dataclasses

import numpy as np
from matplotlib.figure import Figure

from common import claim, data, sweep
from gpt_rates import among, either
from minigpt.config import Config, DropoutConfig, ModelConfig, OptimConfig

ORDERS = {"pre": "pre-norm", "post": "post-norm"}
WARM, COLD = "with warm-up", "without warm-up"
BOUND = 0.05  # nats: a smaller change is called none
XIONG = "Xiong et al., On layer normalization in the transformer architecture, ICML 2020"


def experiment(scale: claim.Scale) -> claim.Result:
    losses = run_all(scale)
    findings = [post_is_worse(losses), warm_up_matters(losses), pre_needs_none(losses)]
    numbers = {" ".join(map(str, cell)): claim.interval(loss) for cell, loss in losses.items()}
    return claim.Result(findings, draw(losses), {"loss": numbers})


def run_all(scale: claim.Scale) -> dict[tuple, np.ndarray]:
    """The loss by seed, by order, layers and rate (one program each), and warm-up."""
    text = data.all_plays()
    stacks = scale.pick([(1, 0.1)], [(2, 0), (12, 0), (12, 0.1)], [(4, 0), (24, 0), (24, 0.1)])
    cells = [(norm, *stack) for stack in stacks for norm in ORDERS]
    steps, seeds = scale.pick(10, 160, 1500), range(scale.pick(3, 5, 10))
    warm = OptimConfig(3e-3, min_learning_rate=3e-4, warmup_steps=steps // 5)
    cold, found = dataclasses.replace(warm, warmup_steps=0), {}
    for norm, depth, rate in scale.track(cells, "orders of norm"):
        model = ModelConfig(
            n_layer=depth,
            n_head=2,
            n_embd=32,
            block_size=16,
            norm=norm,
            scan_layers=True,
            dropout=DropoutConfig.uniform(rate),
        )
        config = Config(steps=steps, batch_size=8, mesh="data=1", model=model, optim=warm)
        run = sweep.Runner(config, text.tokenizer.vocab_size, seeds, looks=1, sites=())
        for name, optim in ((WARM, warm), (COLD, cold)):
            losses = run(text.train, {"loss": text.validation}, optim=optim).losses
            found[norm, depth, rate, name] = losses["loss"][:, -1]
    return found


def settings(losses: dict[tuple, np.ndarray]) -> dict[tuple, str]:
    """Layers and rate, and how the page names them."""
    return {
        (depth, rate): f"{depth} layers{f' with dropout {rate}' if rate else ''}"
        for _, depth, rate, _ in losses
    }


def compared(losses: dict[tuple, np.ndarray], minuend: tuple, subtrahend: tuple) -> dict:
    """One order and warm-up minus another, by setting."""
    return {
        name: claim.interval(
            losses[minuend[0], *cell, minuend[1]] - losses[subtrahend[0], *cell, subtrahend[1]]
        )
        for cell, name in settings(losses).items()
    }


def finding(words: str, what: str, gains: dict[str, claim.Interval], good: list) -> claim.Finding:
    told = "; ".join(f"{name}: {gain:+.3f}" for name, gain in gains.items())
    condition = f"the stack has {among(good)}"
    verdict = either(good, list(gains), condition)
    return claim.Finding(words, XIONG, f"Validation loss in nats, {what}. {told}", verdict)


def post_is_worse(losses) -> claim.Finding:
    gains = compared(losses, ("post", COLD), ("pre", COLD))
    good = [name for name in gains if gains[name].positive]
    words = "Without warm-up a post-norm stack trains worse than a pre-norm one"
    return finding(words, f"post-norm minus pre-norm, both {COLD}", gains, good)


def warm_up_matters(losses) -> claim.Finding:
    gains = compared(losses, ("post", COLD), ("post", WARM))
    good = [name for name in gains if gains[name].positive]
    return finding("A post-norm stack needs warm-up", f"post-norm {COLD} minus {WARM}", gains, good)


def pre_needs_none(losses) -> claim.Finding:
    gains = compared(losses, ("pre", COLD), ("pre", WARM))
    good = [name for name in gains if gains[name].high < BOUND]
    words = f"A pre-norm stack does without warm-up (it loses less than {BOUND} nats by it)"
    return finding(words, f"pre-norm {COLD} minus {WARM}", gains, good)


def draw(losses: dict[tuple, np.ndarray]) -> Figure:
    """Every run's loss, by setting."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes, names = figure.subplots(), settings(losses)
    kinds = [(norm, warm) for norm in ORDERS for warm in (WARM, COLD)]
    for i, (norm, warm) in enumerate(kinds):
        found = [claim.interval(losses[norm, *cell, warm]) for cell in names]
        means, lows, highs = np.array(found).T
        places = np.arange(len(names)) + (i - 1.5) * 0.18
        style = {"fmt": "o" if warm == WARM else "x", "color": f"C{i // 2}", "capsize": 3}
        errors = [means - lows, highs - means]
        axes.errorbar(places, means, errors, label=f"{ORDERS[norm]} {warm}", **style)
    axes.set_xticks(range(len(names)), names.values())
    axes.set_ylabel("validation loss, nats (mean and 95 %)")
    axes.legend()
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
