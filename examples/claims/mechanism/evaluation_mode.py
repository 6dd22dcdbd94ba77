"""Training and evaluation mode: what the key decides, and which calls require it.

An MLP of two hidden layers of 128 ReLU units with initial weights, dropout 0.5 on each, predicts
nine of sklearn's digits, ten times in each mode; 1,000 masks of 256 elements are counted. Every
public function of dropout_jax that takes a key is called without it. Nothing is trained. Seed 0
decides everything, and every form of the script is the same.
"""

import inspect
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

import dropout_jax
from common import charts, claim, data, gpt, nets
from common.claim import Finding, Result, describe, verdict
from dropout_jax import dropout, fold
from minigpt.model import GPT

X = jnp.ones((4, 8, 8))
ARGUMENTS: dict[str, Any] = dict.fromkeys(("x", "new", "old", "table", "weights"), X)
ARGUMENTS |= {"rate": 0.5, "shape": X.shape, "where": X > 0, "block_size": 2, "head_axis": 1}
ARGUMENTS |= {"layer": jnp.sin, "head": jnp.sum, "samples": 2, "log_alpha": 0.0, "rate_logit": 0.0}
QKV = {"query": X[None], "key": X[None], "value": X[None], "dropout_rate": 0.5}


def experiment(scale: claim.Scale) -> Result:
    images = data.load_digits().x_test[:9]
    layers = nets.mlp_init(jax.random.key(0), (64, 128, 128, 10))
    outputs = predict_by_mode(lambda key: nets.mlp(layers, images, 0.5, key=key))
    masks = predict_by_mode(lambda key: dropout(jnp.ones(256), 0.5, key=key), 1000)
    api = check_refusals()
    silent = bool((nnx.Dropout(0.5, rngs=nnx.Rngs(0))(X) == 0).any())
    numbers = {"different outputs": count_different(outputs), "refused": api, "flax drops": silent}
    return Result(findings(outputs, masks, api, silent), picture(outputs, api, silent), numbers)


def predict_by_mode(predict, calls=10) -> dict[str, np.ndarray]:
    """Outputs of calls with different keys, with the same key, and with key=None."""
    keys = [fold(jax.random.key(0), i) for i in range(calls)]
    kinds = {"a key each": keys, "the same key": keys[:1] * calls, "None": [None] * calls}
    return {
        name: np.stack([predict(key) for key in call_keys]) for name, call_keys in kinds.items()
    }


def count_different(outputs) -> dict[str, int]:
    return {name: len({each.tobytes() for each in some}) for name, some in outputs.items()}


def check_refusals() -> dict[str, bool]:
    """Whether a call without its key is refused, for every function that has a mode."""
    refused = {}
    for name in dropout_jax.__all__:
        function = getattr(dropout_jax, name)
        parameters = inspect.signature(function).parameters
        if "key" in parameters and parameters["key"].kind is inspect.Parameter.KEYWORD_ONLY:
            arguments = {each: ARGUMENTS[each] for each in parameters if each in ARGUMENTS}
            refused[name] = requires_key(function, arguments)
    attention, model = dropout_jax.dot_product_attention, GPT(gpt.SMALL, 8, rngs=nnx.Rngs(0))
    refused["dot_product_attention"] = requires_key(attention, QKV, "dropout_key")
    refused["minigpt's GPT"] = requires_key(model, {"tokens": jnp.ones((1, 4), int)})
    return refused


def requires_key(function, arguments, key="key") -> bool:
    """Whether a call fails without its key, and works with it."""
    function(**arguments, **{key: None})
    try:
        function(**arguments)
    except TypeError as error:
        return key in str(error)
    return False


def findings(outputs, masks, api, silent) -> list[Finding]:
    counts, drawn = count_different(outputs), count_different(masks)
    return [
        Finding(
            "Masks differ between calls only if the keys differ",
            "Srivastava et al., Dropout, JMLR 2014, section 5.1",
            f"different masks of 256 elements in 1,000 calls, by key: {describe(drawn, 'd')}",
            verdict(list(drawn.values()) == [1000, 1, 1]),
        ),
        Finding(
            "In training mode a network's output differs call by call, in evaluation it does not",
            "Keras docs, Dropout; PyTorch docs, torch.nn.Dropout",
            f"different outputs in 10 calls, bit for bit, by key: {describe(counts, 'd')}",
            verdict(list(counts.values()) == [10, 1, 1]),
        ),
        Finding(
            "This API cannot leave dropout on at evaluation silently: the mode is a required "
            "argument",
            "README of dropout_jax",
            f"called without their key, {sum(api.values())} of {len(api)} functions raise a "
            "TypeError that names it; flax.nnx.Dropout, called without a mode, "
            + ("drops silently" if silent else "does not drop"),
            verdict(all(api.values())),
        ),
    ]


def picture(outputs, api, silent):
    figure, (left, right) = charts.panels(5, 6, height=5.5)
    for name, some in outputs.items():
        left.plot(range(1, len(some) + 1), some[:, 0, 0], "o-", label=f"key={name}")
    left.set(xlabel="call", ylabel="the first logit of a digit", title="an MLP, dropout 0.5")
    left.legend(fontsize=8)
    drops = [not refused for refused in api.values()] + [silent]
    right.scatter(drops, [*api, "flax.nnx.Dropout"], c=drops, cmap="coolwarm")
    right.set(title="called without a mode", xlim=(-0.5, 1.5))
    right.set_xticks((0, 1), ["refused: a TypeError", "runs, and drops silently"])
    right.invert_yaxis()
    return figure


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
