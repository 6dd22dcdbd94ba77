"""Dropout left on at evaluation, and what it costs.

MNIST's 5,000 (4,000 to train on, 1,000 to test): an MLP of two hidden layers of 128 ReLU units,
Adam at 1e-3, 400 steps of 64, five seeds. A GPT of two layers of width 64 on one play, 200 steps,
four seeds. Each is tested with dropout off and, the bug, on, at the rate it was trained with. The
seed decides the MLP's split, the weights, the batches and the masks.
"""

import functools
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import charts, claim, data, gpt, nets
from common.claim import Finding, Result, by_cell, interval
from dropout_jax import fold
from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.training import estimate_loss, token_losses

RATES, GPT_RATES = (0.1, 0.3, 0.5, 0.7, 0.8), (0.1, 0.3)
TINY = ModelConfig(n_layer=1, n_head=1, n_embd=16, block_size=16)
BUG = "PyTorch docs, torch.nn.Module.eval; Goodfellow et al., Deep Learning, 2016, section 7.12"


def experiment(scale: claim.Scale) -> Result:
    seeds, steps = scale.pick((3, 10), (5, 400), (10, 1500))
    rates = scale.pick((0.2, 0.5), RATES, RATES)
    splits = data.stack_splits(
        scale.pick(data.load_digits, data.load_mnist, data.load_mnist), range(seeds)
    )
    results = nets.run_rates_and_seeds(functools.partial(accuracies, steps=steps), rates, splits)
    mlps = dict(zip(rates, zip(*results, strict=True), strict=True))
    runs = scale.pick((2, 2, TINY), (4, 200), (5, 1000))
    gpt_rates = scale.track(scale.pick(GPT_RATES[:1], GPT_RATES, GPT_RATES), "GPTs")
    gpts = {rate: perplexities(rate, *runs) for rate in gpt_rates}
    numbers = {"accuracy, off and on": mlps, "perplexity, off and on": gpts}
    return Result(findings(mlps, gpts), picture(mlps, gpts), numbers)


def accuracies(rate, seed, split, *, steps, calls=5):
    """An MLP's test accuracy with dropout off, and on (the mean over calls)."""

    def accuracy(key):
        return nets.accuracy(nets.mlp(params, split.x_test, rate, key=key), split.y_test)

    key = jax.random.key(seed)
    params = nets.train_mlp(split, seed, rate, (128, 128), steps=steps)
    call_indices = jnp.arange(calls, dtype=jnp.uint32)
    return accuracy(None), jax.lax.map(lambda i: accuracy(fold(key, "bug", i)), call_indices).mean()


def perplexities(rate, seeds, steps, model=gpt.SMALL):
    """A GPT's validation perplexity a character with dropout off and on, by seed."""
    text, config = data.load_one_play(), gpt.make_config(steps, model, rate)
    training = gpt.compile_steps(config, text)
    graph = nnx.graphdef(GPT(config.model, text.tokenizer.vocab_size, rngs=nnx.Rngs(0)))
    batch_losses = jax.jit(lambda params, batch, key: token_losses(graph, params, batch, key))
    losses_by_seed = []
    for seed in range(seeds):
        params, calls = gpt.train(training, config, text, seed, evals=1).params, itertools.count()

        def dropout_on(params, batch, seed=seed, calls=calls):
            return batch_losses(params, batch, fold(jax.random.key(seed), "bug", next(calls)))

        size = {"batches": 8, "batch_size": 16, "block_size": config.model.block_size}
        both = [
            estimate_loss(step, params, text.validation, **size)
            for step in (training.eval_step, dropout_on)
        ]
        losses_by_seed.append(np.exp(both))
    return np.array(losses_by_seed).T


def findings(mlps, gpts) -> list[Finding]:
    costs, where = "Dropout left on at evaluation costs", "the rate is"
    falls = {rate: interval(off - on).percent() for rate, (off, on) in mlps.items()}
    rises = {rate: interval(on - off) for rate, (off, on) in gpts.items()}
    fall = "fall of an MLP's test accuracy in points, by rate"
    rise = "rise of a GPT's perplexity a character, by rate"
    return [
        by_cell(f"{costs} accuracy", BUG, fall, falls, where, ".1f"),
        by_cell(f"{costs} perplexity", BUG, rise, rises, where, ".2f"),
    ]


def picture(mlps, gpts):
    figure, (left, right) = charts.panels(7, 4)
    labels = ("test accuracy, MLP on MNIST's 5,000", "perplexity a character, small GPT")
    for axes, cells, label in zip((left, right), (mlps, gpts), labels, strict=True):
        bars = {r: {"off": interval(off), "on": interval(on)} for r, (off, on) in cells.items()}
        charts.bars(axes, bars, xlabel="rate, in training and at evaluation", ylabel=label)
        axes.legend(title="dropout at evaluation", ncols=2, fontsize=8)
        axes.set_ylim(0, 1.2 * axes.dataLim.ymax)
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
