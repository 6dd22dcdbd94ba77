"""Uncertainty of GPTs: train one for each seed, and score windows of texts with MC dropout."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from common import data, gpt
from common.claim import Scale
from common.texts import make_windows
from dropout_jax import fold, mc_dropout, mutual_information, predictive_entropy
from minigpt.data import Batch
from minigpt.model import GPT


class WindowOutputs(NamedTuple):
    """A GPT's outputs for some windows, at every position."""

    targets: Any
    scores: dict[str, jax.Array]
    probabilities: dict[str, jax.Array]
    """by the softmax with dropout off, and by MC dropout"""


def evaluate_gpts(scale: Scale, texts: tuple[str, ...]) -> Iterator[dict[str, WindowOutputs]]:
    """For each seed, the outputs of its GPT for these texts."""
    seeds, steps = scale.pick(3, 3, 5), scale.pick(4, 600, 5000)
    rows, passes = scale.pick(4, 64, 200), scale.pick(3, 20, 50)
    model = scale.pick(gpt.ModelConfig(1, 2, 16, 32), gpt.SMALL, gpt.SMALL)
    text = data.load_one_play() if scale.name == "smallest" else data.load_all_plays()
    config = gpt.make_config(steps, model, rate=0.1)
    training, sets = gpt.compile_steps(config, text), make_windows(text, rows, model.block_size)
    graph = nnx.split(GPT(config.model, text.tokenizer.vocab_size, rngs=nnx.Rngs(0)))[0]
    for seed in scale.track(range(seeds), "seeds"):
        params, key = gpt.train(training, config, text, seed, evals=1).params, jax.random.key(seed)
        yield {
            name: WindowOutputs(
                sets[name].targets,
                *score_windows(graph, params, sets[name], fold(key, name), passes),
            )
            for name in texts
        }


@functools.partial(jax.jit, static_argnames=("graph", "passes"))
def score_windows(graph, params, batch: Batch, key, passes: int):
    """Every score at every position, and the probabilities of the softmax and of MC dropout."""
    model = nnx.merge(graph, params)
    softmax = jax.nn.softmax(model(batch.inputs, key=None))
    drawn = mc_dropout(
        lambda key: jax.nn.softmax(model(batch.inputs, key=key)), key, passes, batch_size=5
    )
    mean = drawn.mean(0)

    def surprise(p):
        return -jnp.log(jnp.take_along_axis(p, batch.targets[..., None], -1)[..., 0])

    scores = {
        "surprise": surprise(softmax),
        "entropy": predictive_entropy(softmax[None]),
        "MC surprise": surprise(mean),
        "MC entropy": predictive_entropy(drawn),
        "information": mutual_information(drawn),
    }
    return scores, {"softmax": softmax, "MC dropout": mean}
