"""Training and evaluation mode, and the price of mixing them up.

MNIST's 5,000 (4,000 to train on, 1,000 to test): an MLP of two hidden layers of 128 ReLU units,
Adam at 1e-3, 400 steps of 64. A GPT of two layers of width 64 on one play, 200 steps. Each is
tested with dropout off and, the bug, on, at the rate it was trained with. The seed decides the
MLP's split, the weights, the batches and the masks.
"""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

import dropout_jax
from common import claim, data, gpt, nets
from common.claim import Finding, interval
from dropout_jax import fold
from minigpt.config import ModelConfig
from minigpt.evaluate import estimate
from minigpt.model import GPT
from minigpt.train_step import token_losses

RATES, GPT_RATES = (0.1, 0.3, 0.5, 0.7, 0.8), (0.1, 0.3)
TINY = ModelConfig(n_layer=1, n_head=1, n_embd=16, block_size=16)
BUG = "PyTorch docs, torch.nn.Module.eval; Goodfellow et al., Deep Learning, 2016, section 7.12"
X = jnp.ones((4, 8, 8))
ARGUMENTS = dict.fromkeys(("x", "new", "old", "table", "weights"), X)
ARGUMENTS |= {"rate": 0.5, "shape": X.shape, "where": X > 0, "block_size": 2, "head_axis": 1}
ARGUMENTS |= {"layer": jnp.sin, "head": jnp.sum, "samples": 2, "log_alpha": 0.0, "rate_logit": 0.0}


def price(split, seed, rate, steps, calls=5):
    """An MLP's test accuracy with dropout off, and on (the mean over calls)."""

    def loss(params, rows, key):
        logits = nets.mlp(params, split.x_train[rows], rate, key=key)
        return nets.cross_entropy(logits, split.y_train[rows])

    def accuracy(key):
        return nets.accuracy(nets.mlp(params, split.x_test, rate, key=key), split.y_test)

    key = jax.random.key(seed)
    params = nets.mlp_init(fold(key, "weights"), (split.x_train.shape[1], 128, 128, 10))
    params = nets.fit(loss, params, len(split.y_train), fold(key, "fit"), steps=steps)
    places = jnp.arange(calls, dtype=jnp.uint32)
    return accuracy(None), jax.lax.map(lambda i: accuracy(fold(key, "bug", i)), places).mean()


def gpt_prices(rate, seeds, steps, model=gpt.SMALL):
    """A GPT's validation perplexity a character with dropout off and on, by seed."""
    text, config = data.one_play(), gpt.config_of(steps, model, rate)
    training = gpt.compiled(config, text)
    graph = nnx.graphdef(GPT(config.model, text.tokenizer.vocab_size, rngs=nnx.Rngs(0)))
    losses = jax.jit(lambda params, batch, key: token_losses(graph, params, batch, key))
    found = []
    for seed in range(seeds):
        params, calls = gpt.train(training, config, text, seed, evals=1).params, itertools.count()

        def on(params, batch, seed=seed, calls=calls):
            return losses(params, batch, fold(jax.random.key(seed), "bug", next(calls)))

        size = {"batches": 8, "batch_size": 16, "block_size": config.model.block_size}
        both = [estimate(how, params, text.validation, **size) for how in (training.eval_step, on)]
        found.append(np.exp(both))
    return np.array(found).T


def modes_finding(predict, calls=10):
    """How many outputs there are among calls with a key each, with one key, and without."""
    keys = [fold(jax.random.key(0), i) for i in range(calls)]
    kinds = {"a key each": keys, "the same key": keys[:1] * calls, "None": [None] * calls}
    outputs = {
        name: len({np.asarray(predict(key)).tobytes() for key in given})
        for name, given in kinds.items()
    }
    return Finding(
        "In training mode a network's output differs call by call, in evaluation it does not",
        "Keras docs, Dropout; PyTorch docs, torch.nn.Dropout",
        f"different outputs in {calls} calls, bit for bit: "
        + "; ".join(f"key={name}: {count}" for name, count in outputs.items()),
        claim.verdict(list(outputs.values()) == [calls, 1, 1]),
    )


def refuses(function, arguments, key="key"):
    """Whether a call is refused without its key, and only for that."""
    function(**arguments, **{key: None})
    try:
        function(**arguments)
    except TypeError as error:
        return key in str(error)
    return False


def api_finding():
    """Every function with a mode is called without one; flax's layer beside it."""
    found = {}
    for name in dropout_jax.__all__:
        function = getattr(dropout_jax, name)
        parameters = inspect.signature(function).parameters
        if "key" in parameters and parameters["key"].kind is inspect.Parameter.KEYWORD_ONLY:
            given = {each: ARGUMENTS[each] for each in parameters if each in ARGUMENTS}
            found[name] = refuses(function, given)
    attention = {"query": X[None], "key": X[None], "value": X[None], "dropout_rate": 0.5}
    found["dot_product_attention"] = refuses(
        dropout_jax.dot_product_attention, attention, "dropout_key"
    )
    model = GPT(TINY, 8, rngs=nnx.Rngs(0))
    tokens = jnp.ones((1, 4), int)
    found["minigpt's GPT"] = refuses(lambda **key: jax.eval_shape(lambda: model(tokens, **key)), {})
    silent = bool((nnx.Dropout(0.5, rngs=nnx.Rngs(0))(X) == 0).any())
    return Finding(
        "This API cannot leave dropout on at evaluation silently: the mode is a required argument",
        "README of dropout_jax",
        f"called without their key, {sum(found.values())} of {len(found)} functions raise a "
        "TypeError that names it; flax.nnx.Dropout, called without a mode, "
        + ("drops silently" if silent else "does not drop"),
        claim.verdict(all(found.values())),
    )


def price_finding(what, changes, form, unit):
    """By rate: how much worse it is with dropout on."""
    each = "; ".join(f"rate {rate}: {found:{form}}" for rate, found in changes.items())
    return Finding(
        f"Dropout left on at evaluation costs {what}",
        BUG,
        f"{unit}: {each}",
        claim.verdict_by("the rate is", {rate: found.positive for rate, found in changes.items()}),
    )


def draw(mlp, gpts):
    """Both prices, with dropout off and on."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for panel, cells, label in zip(
        figure.subplots(1, 2, width_ratios=(1.6, 1)),
        (mlp, gpts),
        ("test accuracy, MLP on MNIST's 5,000", "validation perplexity a character, small GPT"),
        strict=True,
    ):
        for i, (name, colour) in enumerate((("off", "C0"), ("on (the bug)", "C3"))):
            found = [interval(values[i]) for values in cells.values()]
            places = np.arange(len(cells)) + (i - 0.5) * 0.38
            half = [each.high - each.mean for each in found]
            heights = [each.mean for each in found]
            panel.bar(places, heights, 0.36, yerr=half, color=colour, capsize=3, label=name)
        panel.set_xticks(range(len(cells)), list(map(str, cells)))
        panel.set(xlabel="rate, in training and in the bug", ylabel=label)
    figure.axes[0].legend(title="dropout at evaluation", loc="upper right", ncols=2)
    figure.axes[0].set_ylim(0, 1.2)
    return figure


def experiment(scale: claim.Scale) -> claim.Result:
    """The modes, the API, and the prices."""
    seeds, steps = scale.pick((3, 10), (5, 400), (10, 1500))
    rates = scale.pick((0.2, 0.5), RATES, RATES)
    gpt_runs = scale.pick((2, 2, TINY), (4, 200), (5, 1000))
    load = scale.pick(data.digits, data.mnist, data.mnist)
    splits = data.stacked(load, range(seeds))
    over_seeds = jax.vmap(lambda *x: price(*x, steps), (0, 0, None))
    over_rates = jax.jit(jax.vmap(over_seeds, (None, None, 0)))
    off, on = map(np.asarray, over_rates(splits, jnp.arange(seeds), jnp.array(rates)))
    mlp = {rate: (off[i], on[i]) for i, rate in enumerate(rates)}
    gpt_rates = scale.track(scale.pick(GPT_RATES[:1], GPT_RATES, GPT_RATES), "GPTs")
    gpts = {rate: gpt_prices(rate, *gpt_runs) for rate in gpt_rates}
    params = nets.mlp_init(jax.random.key(0), (splits.x_test.shape[-1], 128, 128, 10))
    falls = {rate: interval(off - on) for rate, (off, on) in mlp.items()}
    rises = {rate: interval(on - off) for rate, (off, on) in gpts.items()}
    findings = [
        modes_finding(lambda key: nets.mlp(params, splits.x_test[0][:9], 0.5, key=key)),
        api_finding(),
        price_finding("accuracy", falls, ".1%", "fall of an MLP's test accuracy"),
        price_finding("perplexity", rises, ".2f", "rise of a GPT's perplexity a character"),
    ]
    numbers = {"accuracy, off and on": mlp, "perplexity, off and on": gpts}
    return claim.Result(findings, draw(mlp, gpts), numbers)


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
